#!/bin/sh
# Makes the passwords that compose.yaml wants as files, one each in deploy/secrets/ (or the folder SECRETS names):
# of the endpoint, of the nodes, of Grafana. Those that exist are left as they are; nothing is printed.
set -eu
umask 077

here=$(dirname "$0")
folder=${SECRETS:-$here/secrets}
mkdir -p "$folder"
# Containers run as users of their own, to whom a file that is mounted must be readable; the folder keeps others out.
chmod 700 "$folder"
# So must what compose.yaml mounts of this folder; a clone under umask 077 keeps it to its owner.
find "$here/start-node.sh" "$here/proxy.yaml" "$here/haproxy.cfg" "$here/prometheus" "$here/grafana" \
    \( ! -perm -004 -o -type d ! -perm -005 \) -exec chmod a+rX {} +

for name in engine_password endpoint_password grafana_password; do
    [ ! -s "$folder/$name" ] || continue
    od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >"$folder/$name.new"
    chmod 444 "$folder/$name.new"
    mv "$folder/$name.new" "$folder/$name"
done
