#!/bin/bash
# Try compose.yaml for real, with a reachable engine: build, boot, a night, the worker killed in the
# middle of the next one, down and up, back up, destroy, restore, one more night.
#
#   docker/try.sh        in a project, volumes and ports of its own; all of it is removed at the end
#
# TORCH_INDEX or TORCH_FIND_LINKS say where torch's CPU build is, as for compose.yaml.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")"
work=$(mktemp -d)
export COMPOSE_PROJECT_NAME=nightshift-try NIGHTSHIFT_TAG=try
export PREFECT_PORT=${PREFECT_PORT:-14200} MLFLOW_PORT=${MLFLOW_PORT:-15000} REVIEW_PORT=${REVIEW_PORT:-18100}
export REVIEW_PIPELINE=try REVIEW_URL=http://127.0.0.1:$REVIEW_PORT
export NIGHTSHIFT_CONFIG_FOLDER=$work/config NIGHTSHIFT_INBOX=$work/inbox
export CPU_CORES=1 CPU_MEMORY=3g
for name in $(sed -n 's/.*${\([A-Z_]*\):?.*/\1/p' compose.yaml | sort -u); do
  export "$name=$(head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n')"
done

began=$SECONDS
say() { echo "[$((SECONDS - began)) s] $*"; }
fail() { say "FAILED: $*"; docker compose logs --no-color --tail 20 cpu deploy prefect 2>&1; exit 1; }
quietly() { "$@" > "$work/log" 2>&1 || { cat "$work/log"; fail "$*"; }; }
end() {
  docker compose --profile gpu --profile review --profile state down --volumes --timeout 5 > "$work/log" 2>&1 || cat "$work/log"
  rm -rf "$work"
}
trap end EXIT

in_house() { docker compose exec -T watch "$@" 2> "$work/err" || { cat "$work/err"; fail "$*"; }; }
begin() { in_house prefect deployment run night/try --param "night=$1" > "$work/log"; }
states() { in_house nightshift status try --json | python3 -c 'import json, sys; print(*(row["night"] + ":" + row["state"] for row in json.load(sys.stdin)))'; }
runs() { in_house prefect flow-run ls --limit 100 --output json $(printf -- '--state-type %s ' COMPLETED PENDING RUNNING FAILED CRASHED CANCELLED) | python3 -c 'import json, sys; print(*sorted(row["state"]["type"] for row in json.load(sys.stdin)))'; }
texts() { in_house nightshift export try "$1" | sort | sha256sum; }
code() { curl --silent --output /dev/null --write-out '%{http_code}' "$@"; }
await() {  # SECONDS WANTED: until the nights' states are these
  local until=$((SECONDS + $1)) found
  while found=$(states); [ "$found" != "$2" ]; do
    [ $SECONDS -lt $until ] || fail "expected the nights '$2', found '$found'"
    sleep 5
  done
}
rows() {  # FIRST COUNT: labelled rows of three topics, a CSV file
  python3 - "$1" "$2" <<'PY'
import random, sys
first, count = int(sys.argv[1]), int(sys.argv[2])
topics = {"cooking": "oven butter flour bake simmer garlic onion recipe", "chess": "pawn rook bishop queen castle gambit endgame check",
          "sailing": "anchor sail mast harbour tide wind keel deck"}
print("text,label")
for number in range(first, first + count):
    chance = random.Random(number)
    topic = chance.choice(sorted(topics))
    print(" ".join(chance.choices(topics[topic].split(), k=6) + [f"word{number}"]) + f",{topic}")
PY
}
drop() { rows "$2" "$3" > "$work/inbox/$1" && touch -d '1 hour ago' "$work/inbox/$1"; }

mkdir -p "$work"/{config,inbox} && chmod 755 "$work" "$work"/*
cat > "$work/config/pipelines.yaml" <<'YAML'
lake: /data/lake
reports: /data/reports
mlflow: http://mlflow:5000
pipelines:
  try:
    schedule: {cron: "0 2 1 1 *", work_pool: cpu}
    source: {paths: ["/inbox/*"], text: text, label: label}
    model: {hidden: 64, embedding: 32, vector: 32}
    pretrain: {epochs: 4}
    train: {when: always, epochs: 12, patience: 12}
    clusters: {k_max: 6}
YAML

docker compose config --quiet
(unset MLFLOW_PASSWORD; ! docker compose config --quiet 2> /dev/null) || fail "a password was not asked for"
quietly docker compose build migrate
say "built: $(docker image inspect nightshift:try --format '{{.Size}}' | awk '{print int($1 / 1e6) " MB"}')"
quietly docker compose up --detach --wait
say "up: Postgres, Prefect, MLflow, one worker"

[ "$(code "http://127.0.0.1:$PREFECT_PORT/api/flows/count" --data '{}')" = 401 ] || fail "Prefect asks no login"
[ "$(code "http://127.0.0.1:$MLFLOW_PORT/api/2.0/mlflow/experiments/search?max_results=1")" = 401 ] || fail "MLflow asks no login"
[ "$(docker compose exec -T cpu id -u)" = 10001 ] || fail "the worker is root"
! docker compose exec -T cpu touch /app/here 2> /dev/null || fail "the root can be written"
docker compose exec -T cpu python -c 'import json; assert len(json.load(open("/app/sbom.cdx.json"))["components"]) > 100' || fail "no bill of materials"
say "logins are asked for, the worker is nobody and cannot write its root"

drop one.csv 0 600 && begin n1
await 900 "n1:published"
say "n1 is published"

password=$(head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n')
REVIEW_USERS=$(docker compose run --rm --no-deps -T deploy python -c "from flows.access import hashed; print('ann:' + hashed('$password'))")
export REVIEW_USERS
quietly docker compose --profile review up --detach --wait --no-deps review
[ "$(code "$REVIEW_URL/")" = 303 ] || fail "the review page asks no login"
signed=$(code "$REVIEW_URL/signin" --cookie-jar "$work/jar" --header "Origin: $REVIEW_URL" --data-urlencode name=ann --data-urlencode "password=$password")
[ "$signed" = 303 ] || fail "the review page let nobody in: $signed"
for _ in {1..60}; do [ "$(code "$REVIEW_URL/" --cookie "$work/jar")" = 200 ] && break || sleep 2; done
curl --silent --cookie "$work/jar" "$REVIEW_URL/review?queue=unsure" | grep -q 'data-doc=' || fail "the review page asks nothing"
say "the review page asks who one is, and then about a document"

quietly docker compose up --detach --no-recreate --no-deps --scale cpu=2 cpu
scheduled=$(in_house prefect flow-run ls --state-type SCHEDULED --output json | python3 -c 'import json, sys; print(len(json.load(sys.stdin)))')
[ "$scheduled" -gt 0 ] || fail "the schedule has no runs"
since=$(date +%s)  # the log of n1 has the same lines
drop two.csv 600 300 && begin n2
for _ in {1..300}; do
  busy=$(for one in $(docker compose ps --quiet cpu); do
    docker top "$one" | grep -q 'prefect[.]engine' && echo "$one" || true; done | head -n 1)
  [ -z "$busy" ] || ! docker logs --since "$since" "$busy" 2>&1 | grep -q "'tokens' - Finished" || break
  sleep 1
done
[ -n "$busy" ] || fail "no worker took n2"
case $(states) in "n1:published n2:running") ;; *) fail "n2 was over before it could be killed" ;; esac
docker kill "$busy" > "$work/log"
say "killed the worker in the middle of n2"
await 900 "n1:published n2:published"
[ "$(runs)" = "COMPLETED COMPLETED" ] || fail "runs are $(runs)"
say "another worker finished n2; no run is left open"

before="$(texts documents) $(texts predictions) $(in_house nightshift champion try | sha256sum)"
quietly docker compose --profile '*' down
quietly docker compose up --detach --wait
[ "$(texts documents) $(texts predictions) $(in_house nightshift champion try | sha256sum)" = "$before" ] || fail "down and up lost something"
say "down and up lost nothing"

quietly ./state.sh backup "$work/backup"
say "backed up: $(du -sh "$work/backup" | cut -f1)"
! ./state.sh restore "$work/backup" 2> "$work/log" || fail "restore went over a running Nightshift"
quietly docker compose --profile '*' down --volumes
quietly ./state.sh restore "$work/backup"
[ "$(texts documents) $(texts predictions) $(in_house nightshift champion try | sha256sum)" = "$before" ] || fail "the restored tables are others"
say "destroyed, restored: every document, every answer and the champion are the same"
drop three.csv 900 100 && begin n3
await 900 "n1:published n2:published n3:published"
say "n3 is published. Done."
