#!/usr/bin/env bash
# The workload a release is optimised by: what sidecars do all day. A throw-away PostgreSQL and `sidegate up` on it, then
# pgbench's reads in all three protocol modes, its writes in transactions, and masked and plain rows in bulk. Some twenty
# seconds; errors of a client end it. Everything lives in one temporary folder.
set -euo pipefail
sidegate=${SIDEGATE:?set SIDEGATE to the program to train}
seconds=${SECONDS_EACH:-2}
pg=${PGBIN:-$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1)}
work=$(mktemp -d -t sidegate-train-XXXXXX)
chmod 755 "$work"
gate_pid=''
as_postgres=()
[ "$(id -u)" = 0 ] && as_postgres=(runuser -u postgres --)

cleanup() {
  local code=$?
  # The profile is written as the program ends by itself.
  [ -n "$gate_pid" ] && kill "$gate_pid" 2>/dev/null && wait "$gate_pid" 2>/dev/null
  [ -e "$work/pg/data/postmaster.pid" ] && "${as_postgres[@]}" "$pg/pg_ctl" -D "$work/pg/data" -m immediate stop >/dev/null 2>&1
  [ $code -eq 0 ] || tail -n 20 "$work"/*.log >&2
  rm -rf "$work"
  exit $code
}
trap cleanup EXIT
trap 'exit 130' INT TERM

free_port() {
  local port
  while :; do
    port=$((RANDOM % 20000 + 11000))
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
  done
}

db_port=$(free_port)
mkdir "$work/pg"
if [ "$(id -u)" = 0 ]; then chown postgres "$work/pg"; fi
(cd "$work" && "${as_postgres[@]}" "$pg/initdb" -D "$work/pg/data" -U postgres -A trust -E UTF8 --locale=C.UTF-8 --no-sync >"$work/initdb.log" 2>&1)
printf '%s\n' 'host all gate 127.0.0.1/32 scram-sha-256' 'host all postgres 127.0.0.1/32 trust' |
  "${as_postgres[@]}" tee "$work/pg/data/pg_hba.conf" >/dev/null
(cd "$work" && "${as_postgres[@]}" "$pg/postgres" -D "$work/pg/data" -p "$db_port" -c listen_addresses=127.0.0.1 -c fsync=off \
  -c unix_socket_directories= >"$work/postgres.log" 2>&1) &
admin() { psql -X -q -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$db_port" -U postgres "$@"; }
until admin -d postgres -c 'select 1' >/dev/null 2>&1; do
  kill -0 $! 2>/dev/null || exit 1
done
admin -d postgres -c "CREATE ROLE gate LOGIN SUPERUSER PASSWORD 'training-only'" -c 'CREATE DATABASE bench'
pgbench -i -q -s 1 -h 127.0.0.1 -p "$db_port" -U postgres bench >/dev/null 2>&1
admin -d bench >/dev/null <<'SQL'
CREATE TABLE people (id int PRIMARY KEY, name text, email text, ssn text, note text);
INSERT INTO people SELECT g, 'name ' || g, 'n' || g || '@example.org', lpad(g::text, 9, '0'), md5(g::text) FROM generate_series(1, 20000) g;
SQL

gate_port=$(free_port)
mkdir -p "$work/config" "$work/secrets/data/bench"
chmod 700 "$work/secrets" "$work/secrets/data" "$work/secrets/data/bench"
(umask 077
 printf gate >"$work/secrets/data/bench/username"
 printf training-only >"$work/secrets/data/bench/password")
{
  cat <<YAML
apiVersion: sidegate.dev/v1alpha1
kind: Target
metadata: {name: bench, namespace: data}
spec:
  protocol: Postgres
  address: {host: 127.0.0.1, port: $db_port}
  tls: {mode: Disabled}
  credential: {secret: {name: bench}}
  listen: {port: $gate_port}
  recording: {durability: Journal, content: Statements}
  allowedNamespaces: {selector: {}}
---
apiVersion: sidegate.dev/v1alpha1
kind: AccessPolicy
metadata: {name: bench, namespace: data}
spec:
  targetRefs: [{name: bench}]
  subjects: [{serviceAccount: {namespace: local, name: agent}}]
  rules:
YAML
  for n in $(seq 0 97); do
    echo "  - {name: team-$n, effect: Deny, sql: {commands: [Update, Delete], tables: [team_$n.*]}, when: \"!sql.filtered\"}"
  done
  cat <<'YAML'
  - {name: write, effect: Allow, sql: {commands: [Insert, Update, Delete], tables: [public.*]}}
  - {name: read, effect: Allow, sql: {commands: [Select], tables: [public.*]}}
  masks:
  - {columns: [public.people.ssn], as: {keepLast: {count: 4}}}
  - {columns: [public.people.email], as: {redact: {}}}
YAML
} >"$work/config/bench.yaml"
(cd "$work" && exec "$sidegate" up --config config --secrets secrets --state state) >"$work/gate.log" 2>&1 &
gate_pid=$!
until grep -q 'is ready' "$work/gate.log"; do
  kill -0 "$gate_pid" 2>/dev/null || exit 1
done

export PGSSLMODE=disable
bench() { pgbench -n -h 127.0.0.1 -p "$gate_port" -U any -j 1 "$@" bench >>"$work/pgbench.log" 2>&1; }
for mode in prepared extended simple; do
  bench -S -M $mode -c 8 -T "$seconds"
done
bench -S -M prepared -c 64 -T "$seconds"
bench -S -M prepared -c 1 -T "$seconds"
bench -M extended -c 4 -T "$seconds"
rows() { psql -X -q -A -t -h 127.0.0.1 -p "$gate_port" -U any -d bench -c "$1" >/dev/null; }
for _ in 1 2 3; do
  rows 'SELECT id, name, email, ssn, note FROM people'
  rows 'SELECT aid, bid, abalance FROM pgbench_accounts'
done
