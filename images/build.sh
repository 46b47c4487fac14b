#!/usr/bin/env bash
# Builds our programs as static binaries and writes one image of each as an OCI archive, without a daemon, with its list of
# parts (CycloneDX) beside it. Prints sizes and digests, which stand in OUT/images.json.
#
#   images/build.sh [--profile release] [--out target/images]
#
# For release each program is built by itself, with the features that it asks for, in Cargo's profile `image`. In any other
# profile it is linked anew from what the tests are made of, so that nothing is compiled twice: seconds after `make test`, and
# the same code.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
profile=release out=
while [ $# -gt 0 ]; do
  case $1 in
    --profile) profile=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    *) echo "usage: images/build.sh [--profile NAME] [--out DIR]" >&2; exit 64 ;;
  esac
done
cargo=${CARGO:-cargo}
target=$("$cargo" metadata --no-deps --format-version 1 --offline --locked | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
out=${out:-$target/images-$profile}
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
authorities=/etc/ssl/certs/ca-certificates.crt
[ -e "$authorities" ] || { echo "images: $authorities is missing: install ca-certificates" >&2; exit 1; }
mkdir -p "$out"
sidecar_limit=20000000

# Only the last step of a build is told to link statically. Functions that are alike are one (1 % of the sidecar), and relocations
# are packed (glibc 2.36 and newer can): 0.8 MB of its 20.
link_of_the_tests() {
  local mains=({sidecar,broker,injector,cli}/src/main.rs) linked=0
  # They are linked anew, now and for whoever builds next: cargo cannot tell the two forms apart.
  touch "${mains[@]}"
  RUSTC_WRAPPER=$PWD/images/static.sh "$cargo" build --locked --quiet --profile "$profile" --workspace \
    --bin sidegate-sidecar --bin sidegate-broker --bin sidegate-injector --bin sidegate --test node || linked=$?
  touch "${mains[@]}"
  return $linked
}

# image PACKAGE PROGRAM REPOSITORY UID
image() {
  local package=$1 program=$2 built=$profile began=$SECONDS size made
  if [ "$profile" = release ]; then
    built=image
    # shellcheck disable=SC2046 # several flags
    "$cargo" rustc --locked --quiet --profile image -p "$package" --bin "$program" -- $(cat images/link.flags)
  fi
  # A copy: the next build may link it anew.
  cp "$target/$built/$program" "$out/$program"
  if readelf -lW "$out/$program" | grep -q INTERP; then
    echo "images: $program is not static" >&2
    exit 1
  fi
  made=$(python3 images/oci.py "$out/$program.tar" --name "ghcr.io/sidegate/$3:$version" --user "$4:$4" \
    --file "$out/$program=/$program:755" --file "$authorities=/etc/ssl/certs/ca-certificates.crt" \
    --entrypoint "/$program" --env SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    --label org.opencontainers.image.licenses=Apache-2.0 --label org.opencontainers.image.version="$version")
  python3 images/sbom.py "$package" > "$out/$program.cdx.json"
  size=$(stat -c %s "$out/$program")
  echo "${made%\}}, \"archive\": \"$program.tar\", \"binary\": $size}" >> "$out/images.new"
  printf 'images: %-18s %6.1f MB  %s  (%d s)\n' "$3" "$(awk "BEGIN {print $size / 1000000}")" \
    "$(sed 's/.*"digest": "\([^"]*\)".*/\1/' <<< "$made")" $((SECONDS - began))
}

rm -f "$out/images.new"
[ "$profile" = release ] || link_of_the_tests
image sidegate-sidecar sidegate-sidecar sidegate-sidecar 61937
image sidegate-broker sidegate-broker sidegate-broker 65532
image sidegate-injector sidegate-injector sidegate-injector 65532
image sidegate sidegate sidegate-cli 65532
{ echo "["; sed '$!s/$/,/' "$out/images.new"; echo "]"; } > "$out/images.json"
rm "$out/images.new"
# The image, as it is laid on a node: not compressed.
if [ "$profile" = release ] && [ "$(stat -c %s "$out/sidegate-sidecar.tar")" -ge $sidecar_limit ]; then
  echo "images: the sidecar's archive has $(stat -c %s "$out/sidegate-sidecar.tar") bytes; it must stay below $sidecar_limit" >&2
  exit 1
fi
echo "images: archives and lists of parts are in $out"
