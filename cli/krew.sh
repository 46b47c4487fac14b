#!/usr/bin/env bash
# Prints a krew manifest for an archive of the plugin: `cli/krew.sh VERSION ARCHIVE URL > sidegate.yaml`.
# ARCHIVE is a .tar.gz whose root holds `kubectl-sidegate` and LICENSE; URL is where it will be fetched from.
set -euo pipefail

if [ $# -ne 3 ]; then
  echo "usage: $0 VERSION ARCHIVE URL" >&2
  exit 2
fi
version=$1 archive=$2 url=$3
case $version in
  v[0-9]*.[0-9]*.[0-9]*) ;;
  *) echo "$0: krew wants a version such as v0.1.0" >&2; exit 2 ;;
esac
case $url in
  https://*) ;;
  *) echo "$0: the URL is not https" >&2; exit 2 ;;
esac
held=$(tar -tzf "$archive")
for file in kubectl-sidegate LICENSE; do
  if ! grep -qxE "(\./)?$file" <<<"$held"; then
    echo "$0: $archive holds no $file at its root" >&2
    exit 1
  fi
done
digest=$(sha256sum "$archive" | cut -d' ' -f1)
cat <<MANIFEST
apiVersion: krew.googlecontainertools.github.com/v1alpha2
kind: Plugin
metadata:
  name: sidegate
spec:
  version: $version
  homepage: https://sidegate.dev
  shortDescription: Look after agents that reach databases through Sidegate
  description: |
    Checks an installation of Sidegate, lists pods without a valid sidecar, explains what an agent
    may do and why, decides requests, and replays what agents did. It reads with your own rights.
  platforms:
    - selector:
        matchLabels: {os: linux, arch: amd64}
      uri: $url
      sha256: $digest
      bin: kubectl-sidegate
MANIFEST
