#!/bin/sh
# One node of the cluster in its container: writes its configuration, waits until it may start, becomes the server.
#
#   start-node.sh         ends as the server itself (exec), so that signals and the exit status are the server's own
#   start-node.sh check   for health checks: 0 when the node answers and has loaded its data
#
# Nothing but sh and what comes with an engine's image is used. No password is in an argument of any process.
#
# A dead primary must not come back faster than it is missed: restarted at once, with less on disk than it
# acknowledged, it would make its replica forget too. So a node that was a primary asks its replicas first, and as
# long as one of them lives, follows it and has been linked to it, it stays down until that one took over. It then
# comes back as its replica.
#
# - A replica that was itself just started, and never linked to a primary since (the engine says -1 for how long the
#   link is down), has nothing that this node's disk lacks, and would not be elected either: a whole cluster that is
#   started again waits for nobody.
# - A replica that hangs or is cut off may be one that has more: it is waited for, too.
# - With AOF `always` the disk has all that was acknowledged; waiting is not needed for safety, and better all the
#   same: a node that comes back as primary serves nothing for a while, one that took over serves at once.
# - When no one takes over in time (ten node timeouts), a node with an AOF starts: its disk is the best there is. One
#   without never does, it would be empty; CLUSTER FAILOVER TAKEOVER on the replica ends that.
#
# A primary whose disk was lost comes back empty, under another id and at the address that its replica follows: the
# replica would take that for its data. So a node without a memory asks NODE_PEERS whether a primary of its name is
# followed, and stays down as long as it is; and a replica makes sure before it starts that its primary is who it was.
set -eu
umask 077

NODE_NAME=${NODE_NAME:-$(hostname)}          # host name to announce
NODE_PORT=${NODE_PORT:-6379}                 # and this + 10000 for the cluster bus
NODE_DIR=${NODE_DIR:-/data}
NODE_BIND=${NODE_BIND:-}                     # addresses to listen on; empty: all
NODE_PASSWORD_FILE=${NODE_PASSWORD_FILE:-}   # its first line is asked of everyone, other nodes too
NODE_AOF=${NODE_AOF:-always}                 # always, everysec, no, off
NODE_SNAPSHOT=${NODE_SNAPSHOT:-off}          # off, 1h, 6h, 12h
NODE_TIMEOUT_MS=${NODE_TIMEOUT_MS:-2000}     # cluster-node-timeout
NODE_DATABASES=${NODE_DATABASES:-16}         # of Valkey 9 and later
NODE_PEERS=${NODE_PEERS:-}                   # the cluster's nodes, HOST or HOST:PORT each; itself may be among them
NODE_ZONE=${NODE_ZONE:-}                     # availability zone, of Valkey 8.1 and later
NODE_MAXMEMORY=${NODE_MAXMEMORY:-}           # 512mb, say; empty: no limit

ASK_SECONDS=2     # for an answer of another node
FIRST_SECONDS=3   # for a replica's primary to be up first
PATIENCE=10       # node timeouts for a replica to take over; an election takes 1.25 to 1.8

say() { printf 'start-node: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

one_of() { # NAME VALUE WORD...: dies when VALUE is none of the words
    name=$1 value=$2
    shift 2
    for word; do [ "$word" != "$value" ] || return 0; done
    die "$name must be one of $*, not '$value'"
}

read_password() {
    [ -n "$NODE_PASSWORD_FILE" ] || die "set NODE_PASSWORD_FILE to a file whose first line is the nodes' password"
    [ -r "$NODE_PASSWORD_FILE" ] || die "cannot read $NODE_PASSWORD_FILE: correct NODE_PASSWORD_FILE, or its permissions"
    # As the proxy reads it: blanks belong to it, the end of a line as Windows writes it does not.
    IFS= read -r password <"$NODE_PASSWORD_FILE" || true
    password=${password%"$(printf '\r')"}
    [ -n "$password" ] || die "$NODE_PASSWORD_FILE has an empty first line: write the password there"
}

find_program() { # server | cli
    command -v "valkey-$1" || command -v "redis-$1" || die "this image has neither valkey-$1 nor redis-$1"
}

ask() { # HOST PORT: commands from standard input, replies to standard output; 124 or 143: none in time
    VALKEYCLI_AUTH=$password REDISCLI_AUTH=$password timeout "$ASK_SECONDS" "$cli" -h "$1" -p "$2" 2>/dev/null
}

ask_myself() {
    here=${NODE_BIND%% *}
    ask "${here:-127.0.0.1}" "$NODE_PORT"
}

resolve() { # HOST: its address, empty when it has none (the container of a stopped node)
    case $1 in
        *[!0-9.]*) ;;
        *) echo "$1"; return 0 ;;
    esac
    if command -v getent >/dev/null; then
        timeout "$ASK_SECONDS" getent hosts "$1" | awk 'NR == 1 { print $1 }'
    else
        echo "$1"
    fi
}

# ---- the configuration ------------------------------------------------------------------------------------------

quoted() { # as the engine reads it: backslash escapes inside double quotes
    printf '"%s"' "$(printf '%s' "$1" | sed 's/["\\]/\\&/g')"
}

at_least() { # MAJOR MINOR: is the server a Valkey of that version or later?
    "$server" --version | sed -n 's/^Valkey server v=\([0-9]*\)\.\([0-9]*\).*/\1 \2/p' | {
        read -r major minor && [ "$major" -gt "$1" -o "$major" -eq "$1" -a "$minor" -ge "$2" ]
    }
}

configuration() {
    echo "# Written by start-node.sh at each start; changes made here are lost."
    if [ -n "$NODE_BIND" ]; then
        echo "bind $NODE_BIND"
        # Nodes believe that a node is where its messages come from.
        echo "bind-source-addr ${NODE_BIND%% *}"
    fi
    echo "port $NODE_PORT"
    echo "protected-mode yes"
    printf 'dir %s\n' "$(quoted "$NODE_DIR")"
    echo "daemonize no"
    echo 'logfile ""'
    echo "tcp-backlog 1024"
    echo "maxclients 10000"
    [ -z "$NODE_MAXMEMORY" ] || echo "maxmemory $NODE_MAXMEMORY"
    echo "maxmemory-policy noeviction"
    printf 'requirepass %s\nmasterauth %s\n' "$(quoted "$password")" "$(quoted "$password")"
    configure_cluster
    configure_disk
}

configure_cluster() {
    echo "cluster-enabled yes"
    echo "cluster-config-file nodes.conf"
    echo "cluster-node-timeout $NODE_TIMEOUT_MS"
    # No cluster-announce-ip: it changes, and the nodes learn each other's address from where messages come.
    echo "cluster-announce-hostname $NODE_NAME"
    echo "cluster-preferred-endpoint-type hostname"
    echo "cluster-require-full-coverage no"
    echo "cluster-allow-replica-migration no"
    ! at_least 9 0 || echo "cluster-databases $NODE_DATABASES"
    # The same for all nodes, so that a SCAN cursor stays good on the replica that took over; and secret.
    ! at_least 9 1 || echo "hash-seed $(printf 'hash-seed %s' "$password" | sha256sum | cut -c1-32)"
    [ -z "$NODE_ZONE" ] || ! at_least 8 1 || echo "availability-zone $NODE_ZONE"
    echo "repl-diskless-sync-delay 0"
    echo "repl-backlog-size 64mb"
    # Redis shows a replica in CLUSTER SLOTS once its offset moved; an idle primary moves it by this ping alone.
    case $server in *redis-server) echo "repl-ping-replica-period 1" ;; esac
    echo "shutdown-timeout 5"
}

configure_disk() {
    case $NODE_AOF in
        off) echo "appendonly no" ;;
        *) echo "appendonly yes"; echo "appendfsync $NODE_AOF" ;;
    esac
    case $NODE_SNAPSHOT in
        off) echo 'save ""' ;;
        *h) echo "save $((${NODE_SNAPSHOT%h} * 3600)) 1" ;;
    esac
}

write_configuration() {
    [ -d "$NODE_DIR" ] && [ -w "$NODE_DIR" ] || die "cannot write to $NODE_DIR: let the user $(id -u) own the volume"
    configuration >"$NODE_DIR/node.conf.new"
    mv "$NODE_DIR/node.conf.new" "$NODE_DIR/node.conf"
}

# ---- the rule ---------------------------------------------------------------------------------------------------

nodes() { # of lines of CLUSTER NODES or nodes.conf: id flags primary host port address, "-" for what is not known
    # "id address:port@bus[,hostname[,name=value]...] flags primary ping pong ..."; a node without an address has port 0
    awk -v here="$NODE_PORT" '$2 ~ /@/ {
        split($2, words, ",")
        address = port = substr(words[1], 1, index(words[1], "@") - 1)
        sub(/.*:/, "", port); sub(/:[0-9]*$/, "", address); gsub(/[][]/, "", address)
        if (address == "") address = "-"
        print $1, $3, $4, (words[2] != "" ? words[2] : address), (port > 0 ? port : here), address
    }'
}

nodes_on_disk() {
    [ ! -f "$NODE_DIR/nodes.conf" ] || nodes <"$NODE_DIR/nodes.conf"
}

my_id_as_primary() { # empty for a replica, and for a node that is new
    nodes_on_disk | awk '$2 ~ /myself/ && $2 ~ /master/ { print $1 }'
}

replicas_of() { # ID: host and port of each, a line each
    nodes_on_disk | awk -v id="$1" '$3 == id && $2 !~ /handshake/ && $4 != "-" { print $4, $5 }'
}

may_take_over() { # ID HOST PORT: does it live, follow that primary, and may it have more than the primary's disk?
    address=$(resolve "$2")
    [ -n "$address" ] || return 1
    status=0
    answer=$(printf 'CLUSTER NODES\nINFO replication\n' | ask "$address" "$3") || status=$?
    case $status in 124 | 143) return 0 ;; esac
    printf '%s\n' "$answer" | awk -v id="$1" '
        $3 ~ /(^|,)myself(,|$)/ { follows = $4 == id }
        /^master_link_status:up/ { linked = 1 }
        /^master_link_down_since_seconds:[0-9]/ { linked = 1 }
        END { exit !(follows && linked) }'
}

heir_of() { # ID: the name of one that may take over
    replicas_of "$1" | while read -r host port; do
        if may_take_over "$1" "$host" "$port"; then
            echo "$host"
            break
        fi
    done
}

wait_for_the_heir() {
    id=$(my_id_as_primary)
    [ -n "$id" ] || return 0
    began=$(date +%s)
    told=
    while heir=$(heir_of "$id") && [ -n "$heir" ]; do
        [ -n "$told" ] || say "stays down until its replica $heir took over"
        told=${told:-waits}
        if [ $((($(date +%s) - began) * 1000)) -ge $((PATIENCE * NODE_TIMEOUT_MS)) ]; then
            [ "$NODE_AOF" = off ] || { say "no replica took over in time: starts with what is on its disk"; return 0; }
            [ "$told" = cure ] || say "no replica took over in time: CLUSTER FAILOVER TAKEOVER on $heir ends the waiting"
            told=cure
        fi
        sleep 0.3
    done
    [ -z "$told" ] || say "starts: no living replica waits to take over any more"
}

# ---- a disk that was lost ---------------------------------------------------------------------------------------

heirs_in_memory() { # of lines of CLUSTER NODES: living followers of a primary that has this node's name
    nodes | awk -v name="$NODE_NAME" -v port="$NODE_PORT" '
        $4 == name && $5 == port && $2 ~ /master/ { lost[$1] = 1 }
        $2 !~ /(^|,)(fail|noaddr)(,|$)/ && $3 != "-" { follows[$1] = $3; host[$1] = $4 }
        END { for (id in follows) if (follows[id] in lost) { print host[id]; exit } }'
}

heir_of_my_name() { # who has what this node lost, as far as its peers know; themselves, while they load and cannot tell
    for peer in $NODE_PEERS; do
        host=${peer%%:*} port=${peer#"$peer"}
        [ "$host" = "$peer" ] || port=${peer##*:}
        [ "$host:${port:-$NODE_PORT}" != "$NODE_NAME:$NODE_PORT" ] || continue
        address=$(resolve "$host")
        [ -n "$address" ] || continue
        answer=$(echo CLUSTER NODES | ask "$address" "${port:-$NODE_PORT}") || continue
        case $answer in LOADING*) echo "$host"; return 0 ;; esac
        heir=$(printf '%s\n' "$answer" | heirs_in_memory)
        [ -z "$heir" ] || { echo "$heir"; return 0; }
    done
}

wait_for_the_heir_of_my_name() {
    [ ! -s "$NODE_DIR/nodes.conf" ] || return 0
    began=$(date +%s)
    told=
    while heir=$(heir_of_my_name) && [ -n "$heir" ]; do
        [ -n "$told" ] || say "its disk is new, and was a primary's: stays down until $heir, which has the data, took over"
        told=${told:-waits}
        if [ "$told" = waits ] && [ $((($(date +%s) - began) * 1000)) -ge $((PATIENCE * NODE_TIMEOUT_MS)) ]; then
            say "no replica took over: CLUSTER FAILOVER TAKEOVER on $heir ends the waiting"
            told=cure
        fi
        sleep 0.3
    done
    [ -z "$told" ] || say "starts as a new node: nobody waits for its former data any more"
}

my_primary() { # of a replica: its primary's id, host and port
    nodes_on_disk | awk '{ host[$1] = $4; port[$1] = $5 } $2 ~ /myself/ { primary = $3 }
        END { if (primary in host && host[primary] != "-") print primary, host[primary], port[primary] }'
}

id_at() { # HOST PORT: the id of the node there, empty when none answers
    address=$(resolve "$1")
    [ -z "$address" ] || echo CLUSTER MYID | ask "$address" "$2" || true
}

make_sure_of_my_primary() {
    my_primary | while read -r id host port; do
        began=$(date +%s)
        while there=$(id_at "$host" "$port") && [ -z "$there" ] && [ $(($(date +%s) - began)) -lt "$FIRST_SECONDS" ]; do
            sleep 0.1
        done
        case $there in
            "$id" | *[!0-9a-f]*) return 0 ;;
            "") say "its primary $host is not there: follows it when it has come and said who it is" ;;
            *) say "its primary $host lost its disk and is another node now: CLUSTER FAILOVER TAKEOVER here makes this one lead" ;;
        esac
        # A replica goes to its primary's last address whoever is there. Without one it waits to hear from it on the
        # cluster's bus, where nodes go by their ids.
        awk -v id="$id" '$1 == id && $3 !~ /noaddr/ { sub(/^[^,]*/, ":0@0", $2); $3 = $3 ",noaddr" } { print }' \
            "$NODE_DIR/nodes.conf" >"$NODE_DIR/nodes.new"
        mv "$NODE_DIR/nodes.new" "$NODE_DIR/nodes.conf"
    done
}

# ---- addresses that change --------------------------------------------------------------------------------------

# The engine remembers nodes by address, and no node finds another where all addresses changed at once (containers made
# anew, a host that starts again). So names are looked up before the server starts. Of two nodes it is enough that the
# later one finds the earlier, which then learns from it; so a name that is not there yet may wait.
renewed() { # ID HOST KNOWN-ADDRESS: a line, where it is another now
    address=$(resolve "$2")
    [ -z "$address" ] || [ "$address" = "$3" ] || echo "$1 $address"
}

renew_addresses() {
    # All at once: where a name is not there, some engines let one wait for seconds to be told.
    nodes_on_disk | {
        while read -r id _flags _primary host _port known; do
            [ "$host" = "$known" ] || [ "$known" = - ] || renewed "$id" "$host" "$known" &
        done
        wait
    } >"$NODE_DIR/nodes.moved"
    if [ -s "$NODE_DIR/nodes.moved" ]; then
        say "$(wc -l <"$NODE_DIR/nodes.moved") of the nodes it knows have new addresses"
        awk 'NR == FNR { moved[$1] = $2; next }
            $1 in moved { sub(/^[^@]*:/, moved[$1] ":", $2) }
            { print }' "$NODE_DIR/nodes.moved" "$NODE_DIR/nodes.conf" >"$NODE_DIR/nodes.new"
        mv "$NODE_DIR/nodes.new" "$NODE_DIR/nodes.conf"
    fi
    rm "$NODE_DIR/nodes.moved"
}

# -----------------------------------------------------------------------------------------------------------------

cli=$(find_program cli)
read_password
if [ "${1:-}" = check ]; then
    [ "$(echo PING | ask_myself)" = PONG ] || die "the node does not answer"
    exit 0
fi
[ $# = 0 ] || die "unknown: $1; give no argument, or check"
server=$(find_program server)
one_of NODE_AOF "$NODE_AOF" always everysec no off
one_of NODE_SNAPSHOT "$NODE_SNAPSHOT" off 1h 6h 12h
write_configuration
# As the first process of a container a shell would not end at these by itself.
trap 'exit 143' TERM INT HUP
wait_for_the_heir
wait_for_the_heir_of_my_name
make_sure_of_my_primary
renew_addresses
exec "$server" "$NODE_DIR/node.conf"
