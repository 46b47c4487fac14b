#!/usr/bin/env bash
# The demo: a throw-away PostgreSQL, Sidegate in local mode, and an agent that uses stock psql.
#
# Each step says what it tries, shows what happened, and checks it; a step that does not do what it says ends the
# demo with exit code 1. Everything lives in one temporary folder and is gone afterwards.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
sidegate=${SIDEGATE:?set SIDEGATE to the sidegate program (make demo does)}
pg=${PGBIN:-$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1)}
[ -x "$pg/postgres" ] || { echo "PostgreSQL's server programs are missing: bash tests/setup/need.sh postgres" >&2; exit 1; }

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
  bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' cyan=$'\e[36m' off=$'\e[0m'
else
  bold='' dim='' green='' red='' cyan='' off=''
fi

work=$(mktemp -d -t sidegate-demo-XXXXXX)
chmod 755 "$work"
postgres_pid='' sidegate_pid=''
started=$SECONDS

cleanup() {
  local code=$?
  # Whatever the ones that are ended here answer, the rest is ended too.
  set +e
  exec 7>&- 8>&- 2>/dev/null
  [ -n "$sidegate_pid" ] && kill "$sidegate_pid" 2>/dev/null && wait "$sidegate_pid" 2>/dev/null
  # The server itself, not the shell that changed the user for it; INT ends it without waiting for clients.
  if [ -n "$postgres_pid" ] && [ -e "$work/pg/data/postmaster.pid" ]; then
    kill -INT "$(head -n 1 "$work/pg/data/postmaster.pid")" 2>/dev/null && wait "$postgres_pid" 2>/dev/null
  fi
  if [ $code -ne 0 ] && [ -n "${SIDEGATE_DEMO_KEEP:-}" ]; then
    echo "Kept for a look: $work" >&2
  else
    rm -rf "$work"
  fi
  exit $code
}
trap cleanup EXIT
trap 'exit 130' INT TERM

step_number=0
step() {
  step_number=$((step_number + 1))
  printf '\n%s%2d  %s%s\n' "$bold" "$step_number" "$1" "$off"
}
say() { printf '    %s\n' "$*"; }
agent_says() { printf '    %sagent$%s %s\n' "$cyan" "$off" "$*"; }
operator_says() { printf '    %soperator$%s %s\n' "$cyan" "$off" "$*"; }
show() { sed "s/^/      /" <<<"$1"; }
good() { printf '    %s✓%s %s\n' "$green" "$off" "$*"; }
bad() {
  printf '    %s✗ %s%s\n' "$red" "$*" "$off"
  exit 1
}
# expect WHAT PATTERN TEXT / refuse WHAT PATTERN TEXT: the text must, or must not, match.
expect() { grep -Eq -- "$2" <<<"$3" && good "$1" || { show "$3"; bad "expected: $1"; }; }
refuse() { grep -Eq -- "$2" <<<"$3" && { show "$3"; bad "must not happen: $1"; } || good "$1"; }

# A port that nothing listens on, told apart by a connection that fails.
free_port() {
  local port
  while :; do
    port=$((RANDOM % 20000 + 11000))
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
  done
}

as_postgres=()
[ "$(id -u)" = 0 ] && as_postgres=(runuser -u postgres --)

start_postgres() {
  db_port=$(free_port)
  admin_password=$(head -c 18 /dev/urandom | base64)
  agent_password="canary$(head -c 18 /dev/urandom | od -An -tx1 | tr -d ' \n')"
  mkdir "$work/pg"
  printf '%s' "$admin_password" >"$work/pg.password"
  if [ "$(id -u)" = 0 ]; then chown postgres "$work/pg" "$work/pg.password"; fi
  chmod 700 "$work/pg"; chmod 600 "$work/pg.password"
  "${as_postgres[@]}" "$pg/initdb" -D "$work/pg/data" -U postgres -A scram-sha-256 --pwfile="$work/pg.password" \
    -E UTF8 --locale=C.UTF-8 --no-sync >"$work/initdb.log" 2>&1 || { cat "$work/initdb.log"; bad "initdb"; }
  rm -f "$work/pg.password"
  # The socket lives in the private folder too: nothing but TCP with SCRAM leads in.
  "${as_postgres[@]}" "$pg/postgres" -D "$work/pg/data" -p "$db_port" -c listen_addresses=127.0.0.1 -c fsync=off \
    -c unix_socket_directories="$work/pg" -c password_encryption=scram-sha-256 >"$work/postgres.log" 2>&1 &
  postgres_pid=$!
  until PGPASSWORD=$admin_password psql -X -q -h 127.0.0.1 -p "$db_port" -U postgres -d postgres -c 'select 1' >/dev/null 2>&1; do
    kill -0 $postgres_pid 2>/dev/null || { cat "$work/postgres.log"; bad "PostgreSQL did not start"; }
  done
  admin -d postgres -c 'CREATE DATABASE shop' >/dev/null
  admin -d shop -v password="$agent_password" -f "$here/../quickstart/schema.sql" -f "$here/data.sql" >/dev/null
}

admin() {
  PGPASSWORD=$admin_password psql -X -q -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$db_port" -U postgres "$@"
}

write_configuration() {
  gate_port=$(free_port)
  mkdir -p "$work/config" "$work/secrets/data/shop-agent" "$work/state"
  chmod 700 "$work/secrets" "$work/secrets/data" "$work/secrets/data/shop-agent" "$work/state"
  for file in "$here"/../quickstart/*.yaml; do
    sed -e "s/port: 5432/port: $db_port/" -e "s/15432/$gate_port/g" "$file" >"$work/config/$(basename "$file")"
  done
  (umask 077
   printf shop_agent >"$work/secrets/data/shop-agent/username"
   printf '%s' "$agent_password" >"$work/secrets/data/shop-agent/password")
}

# The agent is one long-lived bash that Sidegate starts with a clean environment; commands reach it through a pipe,
# and everything it prints lands in a file. That is all the harness there is: what runs is stock psql.
start_sidegate() {
  mkfifo "$work/agent.in"
  : >"$work/agent.out"
  chmod 666 "$work/agent.in" "$work/agent.out"
  separated=()
  if [ "$(id -u)" = 0 ]; then separated=(--run-as nobody); fi
  "$sidegate" up --config "$work/config" --secrets "$work/secrets" --state "$work/state" --as agents/support \
    "${separated[@]}" -- /bin/bash -c 'exec >>"$1" 2>&1; while IFS= read -r line; do eval "$line"; done <"$2"' agent \
    "$work/agent.out" "$work/agent.in" >"$work/sidegate.log" 2>&1 &
  sidegate_pid=$!
  exec 7>"$work/agent.in"
}

# Runs one line of shell as the agent and leaves its output in $reply. The mark after it tells when it is done.
marks=0
agent() {
  agent_start "$1"
  agent_finish
}
agent_start() {
  marks=$((marks + 1))
  before=$(stat -c %s "$work/agent.out")
  printf '%s; echo "<<done-%s>>"\n' "$1" "$marks" >&7
}
agent_finish() {
  local deadline=$((SECONDS + 75))
  until grep -q "<<done-$marks>>" "$work/agent.out"; do
    kill -0 "$sidegate_pid" 2>/dev/null || { cat "$work/sidegate.log"; bad "Sidegate ended"; }
    [ $SECONDS -lt $deadline ] || { tail -c +$((before + 1)) "$work/agent.out"; bad "the agent did not finish in time"; }
    read -rt 0.05 <> <(:) || true
  done
  reply=$(tail -c +$((before + 1)) "$work/agent.out" | grep -v '<<done-' || true)
}
operator() { "$sidegate" "$@" --state "$work/state"; }

printf '%sSidegate demo%s %s- an agent, a database, and nobody who hands out passwords%s\n' "$bold" "$off" "$dim" "$off"

step "A throw-away PostgreSQL with customers and orders"
start_postgres
good "PostgreSQL $("$pg/postgres" --version | grep -oE '[0-9]+\.[0-9]+' | head -n 1) on 127.0.0.1:$db_port; every login asks for SCRAM"

step "Sidegate starts, on the policies of examples/quickstart"
write_configuration
start_sidegate
agent 'echo ready'
show "$(grep -v '^$' "$work/sidegate.log" | head -n 12)"
expect "it says where the target listens" "127\.0\.0\.1:$gate_port" "$(cat "$work/sidegate.log")"
if [ "$(id -u)" = 0 ]; then good "the agent runs as user nobody: separated"; else say "The agent runs as $(id -un): not separated (start the demo as root for that)"; fi

step "The agent reads customers: no password, and what is private stays private"
query='SELECT id, name, email, ssn, card_number FROM app.customers ORDER BY id'
agent_says "psql -c \"$query\""
agent "psql -X -P pager=off -c '$query'"
show "$reply"
expect "rows came back" "Ada Winter" "$reply"
refuse "no social security number and no card number left the gate" '531-22-8841|212-09-9923|4539148803436467|5425233430109903' "$reply"
refuse "no e-mail address left the gate" 'example\.org' "$reply"

step "A masked column cannot be asked about either"
query="SELECT name FROM app.customers WHERE ssn LIKE '531%'"
agent_says "psql -c \"$query\""
agent "psql -X -c \"$query\""
show "$reply"
expect "refused: the answer would reveal the value" "ERROR: +Sidegate refused" "$reply"

step "DROP TABLE is blocked before it reaches the database"
agent_says 'psql -c "DROP TABLE app.cart_items"'
agent 'psql -X -c "DROP TABLE app.cart_items"'
show "$reply"
expect "refused, and the text says by which rule" "ERROR: +Sidegate refused .*rule " "$reply"
expect "the table is still there" "^3$" "$(admin -d shop -At -c 'SELECT count(*) FROM app.cart_items')"

step "DELETE without WHERE is refused, with the reason; inside a transaction the state stays true"
agent_says 'psql -c "BEGIN" -c "DELETE FROM app.cart_items" -c "SELECT 1" -c "ROLLBACK" -c "DELETE FROM app.cart_items WHERE id = 3"'
agent 'psql -X -c "BEGIN" -c "DELETE FROM app.cart_items" -c "SELECT 1" -c "ROLLBACK" -c "DELETE FROM app.cart_items WHERE id = 3"'
show "$reply"
expect "refused with the operator's message" "Add a WHERE clause" "$reply"
expect "the transaction really failed" "current transaction is aborted" "$reply"
expect "the filtered DELETE passed" "^DELETE 1$" "$reply"
expect "two rows are left" "^2$" "$(admin -d shop -At -c 'SELECT count(*) FROM app.cart_items')"

step "A refund needs a person"
query="UPDATE app.orders SET status = 'refunded', refunded_at = now() WHERE id = 102"
agent_says "psql -c \"$query\""
agent_start "psql -X -c \"$query\""
deadline=$((SECONDS + 20))
until ticket=$(operator requests -o json | grep -oE 'ar-[0-9a-z]+' | head -n 1) && [ -n "$ticket" ]; do
  [ $SECONDS -lt $deadline ] || { operator requests || true; bad "no request showed up"; }
done
expect "held: nothing was sent yet" "^lost$" "$(admin -d shop -At -c 'SELECT status FROM app.orders WHERE id = 102')"
operator_says "sidegate requests"
show "$(operator requests)"
operator_says "sidegate approve $ticket --reason 'parcel is lost, see case 7'"
show "$(operator approve "$ticket" --reason 'parcel is lost, see case 7')"
agent_finish
show "$reply"
expect "approved, then sent once" "^UPDATE 1$" "$reply"
expect "the order is refunded" "^refunded$" "$(admin -d shop -At -c 'SELECT status FROM app.orders WHERE id = 102')"

step "What the agent holds"
agent_says "env"
agent "env | sort"
show "$reply"
refuse "no credential in the environment" "$agent_password|PGPASSWORD|PASSWORD=" "$reply"
# What was written since this began: others may keep a great deal in /tmp.
agent "find \"\$HOME\" /tmp -type f -mmin -10 -exec grep -sl '$agent_password' {} + 2>/dev/null | head -n 3; echo searched"
expect "and none in any file written meanwhile that it can read" "^searched$" "$reply"
if [ "$(id -u)" = 0 ]; then refuse "the search found nothing" "^/" "$reply"; fi

step "The kill switch cuts a live session"
agent_says "psql, which stays connected"
mkfifo "$work/psql.in"; chmod 666 "$work/psql.in"
agent_start "psql -X -At <'$work/psql.in'"
exec 8>"$work/psql.in"
echo "SELECT 'session ' || 'is open';" >&8
until grep -q '^session is open$' "$work/agent.out"; do kill -0 "$sidegate_pid" 2>/dev/null || bad "Sidegate ended"; done
operator_says "sidegate lock --service-account agents/support --reason 'suspected prompt injection'"
show "$(operator lock --service-account agents/support --reason 'suspected prompt injection')"
echo "SELECT 'after ' || 'the lock';" >&8
exec 8>&-
agent_finish
show "$reply"
expect "the session is gone" "terminating|closed|frozen|locked|57P01|lost" "$reply"
refuse "nothing ran after the lock" "^after the lock$" "$reply"
agent 'psql -X -c "SELECT 1"'
show "$reply"
expect "and no new one opens" "[Ff]rozen" "$reply"
show "$(operator unlock --all)"
agent 'psql -X -At -c "SELECT count(*) FROM app.orders"'
expect "after unlock the agent works again" "^3$" "$reply"

step "The record: every operation, replayed as the agent saw it"
operator_says "sidegate sessions"
show "$(operator sessions)"
refunded=''
for id in $(operator sessions -o json | grep -oE '"id": *"[0-9a-f-]{36}"' | grep -oE '[0-9a-f-]{36}'); do
  transcript=$(operator replay "$id")
  if grep -q 'UPDATE app.orders' <<<"$transcript"; then refunded=$id; fi
done
[ -n "$refunded" ] || bad "no session with the refund"
operator_says "sidegate replay $refunded"
transcript=$(operator replay "$refunded")
show "$transcript"
expect "it shows the hold and who approved" "GRANTED .* by " "$transcript"

step "Sidegate stops; the record verifies offline"
exec 7>&-
wait "$sidegate_pid" || true
sidegate_pid=''
operator_says "sidegate verify STORE"
if verdict=$("$sidegate" verify "$work/state/records" 2>&1); then code=0; else code=$?; fi
show "$verdict"
[ $code -eq 0 ] && good "every session is VALID (exit code 0)" || bad "the verifier says $code"
if grep -rqs "$agent_password" "$work/state/records"; then bad "the password is in the record"; fi
good "the password is nowhere in the record"

step "One byte of the record is changed"
segment=$(find "$work/state/records" -name '*.sgr' -size +0 | sort | head -n 1)
size=$(stat -c %s "$segment")
offset=$((size / 2))
old=$(od -An -tu1 -j $offset -N 1 "$segment" | tr -d ' ')
printf "\\x$(printf %02x $((old ^ 1)))" | dd of="$segment" bs=1 seek=$offset conv=notrunc status=none
say "byte $offset of $(basename "$segment"): $old -> $((old ^ 1))"
if verdict=$("$sidegate" verify "$work/state/records" 2>&1); then code=0; else code=$?; fi
show "$verdict"
[ $code -ge 20 ] && good "the verifier names it (exit code $code)" || bad "the change went unnoticed (exit code $code)"

printf '\n%sDone in %s s.%s Policies: examples/quickstart/. Your turn: sidegate up --help\n' "$bold" $((SECONDS - started)) "$off"
