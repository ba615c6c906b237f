#!/bin/bash
# Back up, or restore, all state of compose.yaml: both databases, the tables, the pages, the models.
#
#   docker/state.sh backup FOLDER     waits for the nights that run, lets none begin, copies, goes on
#   docker/state.sh restore FOLDER    into an engine without such state, and starts everything
#
# What it writes holds texts and logins' digests: its mode is 0700, and a stolen one is a leak.
set -euo pipefail
umask 077
compose() { docker compose --file "$(dirname "$(realpath "$0")")/compose.yaml" "$@"; }
fail() { echo "state.sh: $*" >&2; exit 1; }

backup() {
  local to=$1 part=$1.partial  # held and pools are read when the script ends, and no longer here
  [ ! -e "$to" ] || fail "$to is there already. Name another folder."
  rm -rf "$part" && mkdir -p "$part"
  held='' reviewing=''
  pools=$(compose run --rm --no-deps -T deploy python docker/steps.py pause)
  # Whatever happens, the nights go on.
  trap '[ -z "$held" ] || { docker stop "$held" >/dev/null; docker rm "$held" >/dev/null; }
    compose run --rm --no-deps -T deploy python docker/steps.py resume $pools
    [ -z "$reviewing" ] || docker start $reviewing >/dev/null' EXIT
  held=$(compose run --detach --no-deps deploy python docker/steps.py hold)
  reviewing=$(compose --profile review ps --quiet --status running review)
  [ -z "$reviewing" ] || docker stop $reviewing >/dev/null
  echo "waiting until no night runs" >&2
  until docker logs "$held" 2>&1 | grep -qx held; do
    [ "$(docker inspect --format '{{.State.Running}}' "$held")" = true ] || fail "$(docker logs "$held" 2>&1)"
    sleep 1
  done
  for name in prefect mlflow; do
    compose exec -T postgres pg_dump --username postgres --format custom "$name" > "$part/$name.dump"
  done
  compose run --rm -T state tar --create --directory / --exclude 'data/lake/*/leases' data artifacts > "$part/files.tar"
  echo "$pools" > "$part/pools"
  (cd "$part" && sha256sum prefect.dump mlflow.dump files.tar pools > SHA256SUMS)
  mv "$part" "$to"
  echo "backed up to $to: $(du -sh "$to" | cut -f1)" >&2
}

restore() {
  local from=$1
  (cd "$from" && sha256sum --check --quiet SHA256SUMS) || fail "$from is damaged; nothing was changed."
  [ -z "$(compose --profile gpu --profile review ps --quiet --status running prefect mlflow cpu gpu review)" ] ||
    fail "Nightshift is running: restore is for an empty engine. \`docker compose --profile '*' down\` first."
  [ -z "$(compose run --rm -T state find /data /artifacts -mindepth 1 -print -quit)" ] ||
    fail "the volumes are not empty, and nothing is overwritten. Remove them first, or use another engine."
  compose up --detach --wait postgres
  for name in prefect mlflow; do
    compose exec -T postgres pg_restore --username postgres --dbname "$name" --single-transaction \
      --exit-on-error < "$from/$name.dump"
  done
  compose run --rm -T state tar --extract --preserve-permissions --directory / < "$from/files.tar"
  compose up --detach --wait
  compose run --rm --no-deps -T deploy python docker/steps.py resume $(cat "$from/pools")
  echo "restored from $from, and running" >&2
}

case "${1:-} $#" in
  "backup 2") backup "${2%/}" ;;
  "restore 2") restore "${2%/}" ;;
  *) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
