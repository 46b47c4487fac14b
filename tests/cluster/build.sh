#!/usr/bin/env bash
# Builds the test cluster's programs (etcd, Kubernetes, helm, kwok, kubeconform) from Go modules into a cache outside
# git, and does nothing when they are there. `--key` and `--folder` print which build this checkout wants and where it
# lies: the tests ask, so that the key is worked out in one place.
#
# SIDEGATE_KUBERNETES names another minor version than the one of kube/go.mod: kube/1.33.mod and its like pin them. Builds
# and tests take it, so `SIDEGATE_KUBERNETES=1.33 make cluster-binaries e2e` runs the suite on that one.
#
# SIDEGATE_GOCACHE names a Go build cache to keep: after a change in a main.go a build is then one link. Otherwise it
# lies in a temporary folder, since it grows to some 5 GB that nothing else uses.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${SIDEGATE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sidegate}
# What is built is what go.sum names, by the Go that is here; neither the user's settings nor a newer Go change that.
export GOTOOLCHAIN=local GOFLAGS= GOWORK=off CGO_ENABLED=0
if ! command -v go >/dev/null; then
  echo "Go is missing: install Go 1.26 or newer (https://go.dev/dl), then run tests/cluster/build.sh" >&2
  exit 1
fi

# Which go.mod the Kubernetes of this build is pinned by.
modfile=go.mod
if [ -n "${SIDEGATE_KUBERNETES:-}" ]; then
  modfile=$SIDEGATE_KUBERNETES.mod
  if [ ! -e "$here/kube/$modfile" ]; then
    echo "SIDEGATE_KUBERNETES=$SIDEGATE_KUBERNETES: none of$(cd "$here/kube" && printf ' %s' [0-9]*.mod | sed 's/\.mod//g'), which tests/cluster/kube pins beside the default" >&2
    exit 64
  fi
fi

# The key: everything in this folder but what pins another Kubernetes, Go's version (which names system and processor).
# Names before contents, and sorted by bytes, so that no locale changes it.
key=$({
  go version
  cd "$here"
  find . -type f ! -path './kube/*.mod' ! -path './kube/*.sum' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
  cd kube
  sha256sum "$modfile" "${modfile%.mod}.sum"
} | sha256sum | cut -c1-16)
folder=$cache/cluster/$key
case ${1:-} in
  --key) echo "$key"; exit ;;
  --folder) echo "$folder"; exit ;;
  "") ;;
  *) echo "usage: build.sh [--key | --folder]" >&2; exit 64 ;;
esac

# pinned FOLDER MODULE [MODFILE]: the version of a module as its go.mod pins it.
pinned() {
  (cd "$here/$1" && go list -mod=readonly -modfile="${3:-go.mod}" -m -f '{{.Version}}' "$2")
}

told() {
  echo "cluster: key $key in $folder"
  cat "$folder/BUILT.json"
}

mkdir -p "$cache/cluster"
# Two builds at once would write over each other; the second one waits, then finds everything there.
exec 9>"$cache/cluster/$key.lock"
flock 9
if [ -e "$folder/BUILT.json" ]; then
  told
  exit
fi

rm -rf "$folder" && mkdir -p "$folder"
if [ -n "${SIDEGATE_GOCACHE:-}" ]; then
  export GOCACHE=$SIDEGATE_GOCACHE
else
  GOCACHE=$(mktemp -d "${TMPDIR:-/tmp}/sidegate-gocache.XXXXXX")
  export GOCACHE
  trap 'rm -rf "$GOCACHE"' EXIT
fi

lines=()
# build NAME MODULE PACKAGE VERSION [LDFLAGS [MODFILE]]
build() {
  local name=$1 module=$2 package=$3 version=$4 flags=${5:-} pins=${6:-go.mod} began=$SECONDS size took
  (cd "$here/$module" && go build -mod=readonly -modfile="$pins" -trimpath -p 2 -ldflags "-s -w $flags" -o "$folder/$name" "$package")
  took=$((SECONDS - began))
  size=$(stat -c %s "$folder/$name")
  lines+=("    {\"program\": \"$name\", \"version\": \"$version\", \"seconds\": $took, \"bytes\": $size}")
  echo "cluster: $name $version: $took s, $((size / 1000000)) MB"
}

etcd=$(pinned etcd go.etcd.io/etcd/server/v3)
kube=$(pinned kube k8s.io/kubernetes "$modfile")
helm=$(pinned tools helm.sh/helm/v4)
kwok=$(pinned tools sigs.k8s.io/kwok)
kubeconform=$(pinned tools github.com/yannh/kubeconform)
minor=${kube#v1.}
# Without these the server calls itself v0.0.0-master, and clients that check its version refuse it.
stamp=
for where in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
  stamp+=" -X $where.gitVersion=$kube -X $where.gitMajor=1 -X $where.gitMinor=${minor%%.*}"
  stamp+=" -X $where.gitCommit=unknown -X $where.gitTreeState=clean -X $where.buildDate=1970-01-01T00:00:00Z"
done

build etcd etcd . "$etcd"
build kube kube . "$kube" "$stamp" "$modfile"
build kubeconform tools github.com/yannh/kubeconform/cmd/kubeconform "$kubeconform" "-X main.version=$kubeconform"
build kwok tools sigs.k8s.io/kwok/cmd/kwok "$kwok"
build helm tools helm.sh/helm/v4/cmd/helm "$helm" "-X helm.sh/helm/v4/internal/version.version=$helm"

# kwok moves a pod's status by stages, which its module carries.
stages=$(cd "$here/tools" && go list -mod=readonly -m -f '{{.Dir}}' sigs.k8s.io/kwok)/kustomize/stage
for file in "$stages"/{node/fast,node/heartbeat-with-lease,pod/fast}/*.yaml; do
  case $file in */kustomization.yaml) continue ;; esac
  echo "---"
  cat "$file"
done > "$folder/stages.yaml"

# Last, so that a folder without it is a build that did not end.
{
  echo "{"
  echo "  \"key\": \"$key\", \"go\": \"$(go env GOVERSION)\", \"seconds\": $SECONDS,"
  echo "  \"programs\": ["
  (IFS=$'\n'; echo "${lines[*]}" | sed '$!s/$/,/')
  echo "  ]"
  echo "}"
} > "$folder/BUILT.json.new"
mv "$folder/BUILT.json.new" "$folder/BUILT.json"
told
