#!/usr/bin/env bash
# Fetches what a node of the tests is made of into a cache outside git, once: containerd, runc, CNI plugins and nft, and
# the root file systems of two agents, all from Debian packages that are unpacked and never installed; pause is built.
# `--folder` prints where it lies. Does nothing when it is there, and needs the network only when it is not.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${SIDEGATE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sidegate}

# What the node runs on. busybox brings `ip`, which in Debian's form needs a dozen libraries.
NODE=(containerd runc containernetworking-plugins nftables libnftables1 libnftnl11 libmnl0 libjansson4 libedit2
  libbsd0 libmd0 libgmp10 libtinfo6 libxtables12 busybox-static)
# What every agent has: a shell, and certificates.
BASE=(base-files libc6 libc-bin libcrypt1 libgcc-s1 zlib1g busybox-static)
# libpq and all it stands on.
LIBPQ=(libpq5 libssl3 libgssapi-krb5-2 libkrb5-3 libk5crypto3 libkrb5support0 libcom-err2 libkeyutils1 libldap-2.5-0
  libsasl2-2 libdb5.3 libzstd1 liblz4-1 libgnutls30 libp11-kit0 libidn2-0 libunistring2 libtasn1-6 libnettle8 libhogweed6
  libgmp10 libffi8)
PSQL=(postgresql-client-15 libreadline8 libtinfo6)
PYTHON=(python3.11-minimal libpython3.11-minimal libpython3.11-stdlib python3-psycopg python3-typing-extensions
  libexpat1 libbz2-1.0 liblzma5 libuuid1 libsqlite3-0 libncursesw6 libtinfo6 libreadline8 media-types)

key=$(cat "$here/setup.sh" "$here/pause.c" | sha256sum | cut -c1-16)
folder=$cache/node/$key
case ${1:-} in
  --folder) echo "$folder"; exit ;;
  "") ;;
  *) echo "usage: setup.sh [--folder]" >&2; exit 64 ;;
esac

mkdir -p "$cache/node"
# Two at once would write over each other; the second one waits, then finds everything there.
exec 9>"$cache/node/$key.lock"
flock 9
if [ -e "$folder/ready" ]; then
  exit
fi
echo "node: fetching containerd, runc, CNI plugins and two agents' file systems from Debian into $folder"
rm -rf "$folder" && mkdir -p "$folder/debs"
# apt's own user reads and writes there.
staging=$(mktemp -d "${TMPDIR:-/tmp}/sidegate-debs.XXXXXX")
trap 'rm -rf "$staging"' EXIT
chmod 777 "$staging"

# Packages into the staging folder, by names that apt looks up.
fetch() {
  (cd "$staging" && apt-get download "$@") >>"$folder/apt.log" 2>&1
}
mapfile -t all < <(printf '%s\n' "${NODE[@]}" "${BASE[@]}" "${LIBPQ[@]}" "${PSQL[@]}" "${PYTHON[@]}" | sort -u)
fetch "${all[@]}" || {
  apt-get update >>"$folder/apt.log" 2>&1 || true
  fetch "${all[@]}"
} || { tail -n 20 "$folder/apt.log" >&2; echo "node: packages could not be fetched; the whole log is $folder/apt.log" >&2; exit 1; }

# unpack INTO PACKAGE...
unpack() {
  local into=$1 package
  shift
  mkdir -p "$into"
  for package in "$@"; do
    dpkg-deb -x "$staging/$package"_*.deb "$into"
  done
}

# An agent's file system: what its packages hold, less the documentation, with a shell and a user.
agent() {
  local into=$1
  shift
  unpack "$into" "${BASE[@]}" "${LIBPQ[@]}" "$@"
  rm -rf "$into"/usr/share/{doc,man,locale,info,lintian,bug}
  mkdir -p "$into"/{bin,tmp,proc,sys,dev,run,etc}
  chmod 1777 "$into/tmp"
  for applet in sh cat echo sleep ls id env test true false date mkdir touch wget nc ip; do
    [ -e "$into/bin/$applet" ] || ln -s busybox "$into/bin/$applet"
  done
  printf 'root:x:0:0::/root:/bin/sh\nagent:x:1000:1000::/tmp:/bin/sh\n' > "$into/etc/passwd"
  printf 'root:x:0:\nagent:x:1000:\n' > "$into/etc/group"
  printf 'passwd: files\ngroup: files\nhosts: files dns\n' > "$into/etc/nsswitch.conf"
}

unpack "$folder/root" "${NODE[@]}"
agent "$folder/agent-psql" "${PSQL[@]}"
ln -s ../lib/postgresql/15/bin/psql "$folder/agent-psql/usr/bin/psql"
agent "$folder/agent-python" "${PYTHON[@]}"
ln -sf python3.11 "$folder/agent-python/usr/bin/python3"
# They must run before any pod does; Python finds libpq by the linker's cache.
if [ "$(id -u)" = 0 ]; then
  chroot "$folder/agent-psql" /usr/bin/psql --version >/dev/null
  chroot "$folder/agent-python" /sbin/ldconfig
  mknod -m 666 "$folder/agent-python/dev/null" c 1 3
  chroot "$folder/agent-python" /usr/bin/python3 -c 'import psycopg, ssl; psycopg.pq.version()'
  rm "$folder/agent-python/dev/null"
fi
mkdir -p "$folder/pause"
gcc -Os -static -s -o "$folder/pause/pause" "$here/pause.c"
rmdir "$folder/debs"
touch "$folder/ready"
du -sh "$folder" | cut -f1 | sed "s|^|node: ready, |"
