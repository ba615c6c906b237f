#!/bin/bash
# Run once, by an empty Postgres: a database and a login of its own for each of the two servers.
set -euo pipefail
for name in prefect mlflow; do
  psql --quiet --set ON_ERROR_STOP=1 --set name="$name" --username postgres --dbname postgres <<SQL
\getenv password ${name^^}_DB_PASSWORD
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
done
