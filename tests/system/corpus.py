# ruff: noqa: E501 (a command is one line)
r"""Commands of many types, as one would type them; each group starts on an empty database and runs in order.

Words are cut as inline commands are ("\x00" in double quotes is a byte).  Keys that one command names together carry
a hash tag, but for those that are split over shards.
"""

from __future__ import annotations

from proxy.codec import split_inline

_GROUPS = {
    "strings": r"""
        SET a 1
        GET a
        GET missing
        SET empty ""
        GET empty
        SET bytes "\x00\x01\r\n\xff"
        GET bytes
        SETNX a 2
        SETNX fresh 2
        SET a 2 NX
        SET a 2 XX
        SET a 3 GET
        SET nowhere 3 XX GET
        SET a 4 IFEQ 3
        SET a 5 IFEQ 3
        SET ttl 1 EX 1000
        SET ttl 2 KEEPTTL
        TTL ttl
        SET ttl 3 PX 900000
        SET ttl 4 EX 0
        SET ttl 4 EX abc
        SET ttl 4 EX 10 PX 10
        SET ttl 4 WRONG
        SETEX ttl 1000 v
        SETEX ttl 0 v
        PSETEX ttl 1000000 v
        GETSET a 6
        GETDEL a
        GETDEL a
        GETEX ttl PERSIST
        TTL ttl
        GETEX ttl EX 100 PERSIST
        APPEND s Hello
        APPEND s " World"
        STRLEN s
        STRLEN missing
        GETRANGE s 0 4
        GETRANGE s -5 -1
        GETRANGE s 100 200
        SUBSTR s 0 4
        SETRANGE s 6 Redis
        SETRANGE padded 5 x
        SETRANGE s -1 x
        GET s
        GET padded
        INCR n
        INCRBY n 41
        DECR n
        DECRBY n 10
        INCRBYFLOAT n 1.5
        INCRBYFLOAT n abc
        INCR n
        SET big 9223372036854775807
        INCR big
        DECRBY big -9223372036854775808
        INCR s
        LCS {l}1 {l}2
        MSET {l}1 ohmytext {l}2 mynewtext
        LCS {l}1 {l}2
        LCS {l}1 {l}2 LEN
        LCS {l}1 {l}2 IDX WITHMATCHLEN
        DELIFEQ s nothing
        DELIFEQ s "Hello Redis"
        TYPE s
        TYPE n
    """,
    "several keys over shards": r"""
        MSET k1 v1 k2 v2 k3 v3 k4 v4 k5 v5 k6 v6 k7 v7 k8 v8
        MGET k1 k2 k3 k4 k5 k6 k7 k8
        MGET k8 k1 nothing k5 k1
        MGET nothing nowhere never
        MGET k1
        MGET
        MSET
        MSET k1
        MSET k1 v k2
        MSET k1 again k1 "and again" k2 w2
        MGET k1 k2
        EXISTS k1 k2 k3 nothing k1
        EXISTS nothing
        EXISTS
        TOUCH k1 k2 nothing k8
        DEL k1 k2 nothing k3
        DEL
        UNLINK k4 k5 nothing k4
        MGET k1 k2 k3 k4 k5 k6 k7 k8
        LPUSH alist x
        MGET k6 alist k7
        DEL k6 alist k7 k8
        MSETEX 2 e1 1 e2 2 EX 1000
        MGET e1 e2
        TTL e1
        TTL e2
        MSETEX 2 {e}1 1 {e}2 2 NX
        MSETEX 2 {e}1 3 {e}3 2 NX
        MSETEX 2 {e}1 3 {e}2 2 XX
        MSETEX 0 a
        MSETEX abc a b
        MSETEX 2 e1 1
        MSETEX
        MSETNX {t}1 a {t}2 b
        MSETNX {t}2 a {t}3 b
        MSETNX {t}2
        MGET {t}1 {t}2 {t}3
        DBSIZE
        FLUSHDB
        DBSIZE
    """,
    "keys": r"""
        SET k v
        EXPIRE k 1000
        TTL k
        EXPIRE k 2000 NX
        EXPIRE k 2000 XX
        EXPIRE k 10 GT
        EXPIRE k 10 LT
        EXPIRE k 10 NX GT
        EXPIRE k abc
        EXPIRE k 10 WRONG
        EXPIRE missing 10
        EXPIREAT k 33177117420
        EXPIRETIME k
        PEXPIREAT k 33177117420000
        PEXPIRETIME k
        PERSIST k
        PERSIST k
        TTL k
        PTTL k
        TTL missing
        PTTL missing
        EXPIRETIME missing
        PEXPIRE k 1000000
        PEXPIRE k 99999999999999999999
        EXPIRE k 9223372036854775807
        EXPIRE k -1
        EXISTS k
        SET {r}1 x
        RENAME {r}1 {r}2
        RENAME {r}1 {r}2
        RENAMENX {r}2 {r}3
        SET {r}2 y
        RENAMENX {r}2 {r}3
        GET {r}3
        COPY {r}3 {r}4
        COPY {r}3 {r}4
        COPY {r}3 {r}4 REPLACE
        COPY {r}3 {r}3
        COPY {r}3 {r}5 DB abc
        GET {r}4
        TYPE {r}4
        TYPE missing
        OBJECT ENCODING {r}4
        OBJECT ENCODING missing
        OBJECT REFCOUNT {r}4
        OBJECT FREQ {r}4
        OBJECT HELP
        OBJECT WRONG {r}4
        OBJECT ENCODING
        SET number 12
        OBJECT ENCODING number
        DUMP missing
        DUMP number
        RESTORE copied 0 "\x00\xc0\x0c\x50\x00\x5d\x33\x79\xd4\x0f\x1a\xcf\x15"
        RESTORE broken 0 garbage
        RESTORE number 0 garbage
        RESTORE number -1 garbage
        GET number
        MOVE number 0
        MOVE number abc
        KEYS number
        KEYS *
        SCAN 0 COUNT abc
        SCAN 0 COUNT 0
        SCAN abc
        SCAN 0 WRONG 1
        RANDOMKEY extra
        DEL number
        DBSIZE extra
        FLUSHALL WRONG
        FLUSHDB SYNC
        FLUSHALL ASYNC
        FLUSHALL
        RANDOMKEY
        KEYS *
        SCAN 0
        DBSIZE
    """,
    "hashes": r"""
        HSET h f1 v1 f2 v2 f3 v3
        HSET h f1 changed f4 v4
        HSET h f1
        HSET h
        HGET h f1
        HGET h nothing
        HGET missing f
        HMSET m a 1 b 2
        HMGET m a nothing b
        HGETALL m
        HGETALL missing
        HKEYS h
        HVALS h
        HLEN h
        HLEN missing
        HSTRLEN h f1
        HEXISTS h f1
        HEXISTS h nothing
        HDEL h f1 f2 nothing
        HSETNX h f3 other
        HSETNX h f9 nine
        HINCRBY h n 5
        HINCRBY h n -7
        HINCRBY h f9 1
        HINCRBYFLOAT h n 0.5
        HINCRBYFLOAT h f9 1
        HRANDFIELD missing
        HRANDFIELD missing 3
        HSET one only field
        HRANDFIELD one
        HRANDFIELD one 5
        HRANDFIELD one 1 WITHVALUES
        HRANDFIELD one -3
        HSCAN h 0
        HSCAN h 0 MATCH f* COUNT 100
        HSCAN h 0 NOVALUES
        HSCAN missing 0
        HSCAN h abc
        HEXPIRE h 1000 FIELDS 2 f3 nothing
        HTTL h FIELDS 3 f3 f4 nothing
        HPEXPIRE h 1000000 NX FIELDS 1 f4
        HEXPIREAT h 33177117420 FIELDS 1 f3
        HEXPIRETIME h FIELDS 1 f3
        HPEXPIREAT h 33177117420000 FIELDS 1 f3
        HPEXPIRETIME h FIELDS 1 f3
        HPERSIST h FIELDS 2 f3 f9
        HEXPIRE h 10 FIELDS 5 f3
        HGETEX h PERSIST FIELDS 1 f4
        HSETEX h EX 100 FIELDS 1 g1 v1
        HSETEX h FNX FIELDS 1 g1 v2
        HGETDEL h FIELDS 2 g1 nothing
        OBJECT ENCODING h
        GET h
        LPUSH h x
        DEL h
        HGETALL h
    """,
    "lists": r"""
        RPUSH l a b c d e f
        LPUSH l z
        RPUSHX l g
        LPUSHX missing g
        RPUSHX missing g
        LLEN l
        LLEN missing
        LRANGE l 0 -1
        LRANGE l 1 2
        LRANGE l 50 60
        LRANGE l a b
        LINDEX l 0
        LINDEX l -1
        LINDEX l 100
        LSET l 0 y
        LSET l 100 y
        LSET missing 0 y
        LINSERT l BEFORE a before
        LINSERT l AFTER a after
        LINSERT l AFTER nothing x
        LINSERT missing AFTER a x
        LINSERT l WRONG a x
        LREM l 1 after
        LREM l 0 nothing
        LPOS l c
        LPOS l nothing
        LPOS l c COUNT 0
        LPOS l c RANK 0
        LPOS l c RANK -1 MAXLEN 3
        LTRIM l 1 5
        LRANGE l 0 -1
        LPOP l
        RPOP l
        LPOP l 2
        RPOP l 0
        LPOP l -1
        LPOP missing
        LPOP missing 2
        RPOP missing
        RPUSH {l}1 1 2 3
        RPOPLPUSH {l}1 {l}2
        RPOPLPUSH {l}missing {l}2
        LMOVE {l}1 {l}2 LEFT RIGHT
        LMOVE {l}1 {l}2 LEFT WRONG
        LMOVE {l}missing {l}2 LEFT LEFT
        LMPOP 2 {l}missing {l}2 LEFT
        LMPOP 2 {l}missing {l}2 RIGHT COUNT 5
        LMPOP 1 {l}missing LEFT
        LMPOP 0 {l}2 LEFT
        LMPOP abc {l}2 LEFT
        SORT {l}1
        OBJECT ENCODING {l}1
        INCR {l}1
        LPUSH
        LPUSH l
    """,
    "sets": r"""
        SADD s a b c d
        SADD s a e
        SADD numbers 1 2 3
        OBJECT ENCODING numbers
        OBJECT ENCODING s
        SCARD s
        SCARD missing
        SISMEMBER s a
        SISMEMBER s nothing
        SMISMEMBER s a nothing b
        SMISMEMBER missing a
        SMEMBERS s
        SMEMBERS numbers
        SMEMBERS missing
        SREM s a nothing
        SREM missing a
        SRANDMEMBER missing
        SRANDMEMBER missing 3
        SRANDMEMBER s 100
        SRANDMEMBER s -3
        SRANDMEMBER s abc
        SADD one only
        SRANDMEMBER one
        SPOP one
        SPOP one
        SPOP missing 2
        SPOP numbers 3
        SPOP s -1
        SADD {s}1 a b c
        SADD {s}2 b c d
        SINTER {s}1 {s}2
        SINTER {s}1 {s}missing
        SINTERCARD 2 {s}1 {s}2
        SINTERCARD 2 {s}1 {s}2 LIMIT 1
        SINTERCARD 0 {s}1
        SINTERCARD abc {s}1
        SUNION {s}1 {s}2
        SDIFF {s}1 {s}2
        SINTERSTORE {s}3 {s}1 {s}2
        SUNIONSTORE {s}4 {s}1 {s}2
        SDIFFSTORE {s}5 {s}1 {s}2
        SMEMBERS {s}3
        SCARD {s}4
        SMOVE {s}1 {s}2 a
        SMOVE {s}1 {s}2 nothing
        SMEMBERS {s}5
        SSCAN {s}2 0 COUNT 100
        SSCAN {s}2 0 MATCH a
        SSCAN missing 0
        GET s
        SADD s
    """,
    "sorted sets": r"""
        ZADD z 1 a 2 b 3 c 4 d
        ZADD z NX 9 a 5 e
        ZADD z XX CH 2.5 b 9 nothing
        ZADD z GT CH 1 b
        ZADD z LT CH 1 b
        ZADD z INCR 5 a
        ZADD z NX INCR 5 a
        ZADD z NX XX 1 a
        ZADD z abc a
        ZADD z 1
        ZADD z inf top -inf bottom
        ZSCORE z a
        ZSCORE z nothing
        ZSCORE z top
        ZMSCORE z a nothing b
        ZCARD z
        ZCARD missing
        ZCOUNT z 1 3
        ZCOUNT z (1 +inf
        ZCOUNT z abc 3
        ZINCRBY z 1.5 a
        ZRANK z a
        ZRANK z a WITHSCORE
        ZRANK z nothing
        ZRANK z nothing WITHSCORE
        ZREVRANK z a
        ZREVRANK z a WITHSCORE
        ZRANGE z 0 -1
        ZRANGE z 0 -1 WITHSCORES
        ZRANGE z 0 1 REV
        ZRANGE z 1 3 BYSCORE
        ZRANGE z (1 +inf BYSCORE LIMIT 1 2
        ZRANGE z 3 1 BYSCORE REV WITHSCORES
        ZRANGE z 0 1 LIMIT 1 1
        ZREVRANGE z 0 1 WITHSCORES
        ZRANGEBYSCORE z 1 5 WITHSCORES LIMIT 0 2
        ZREVRANGEBYSCORE z 5 1
        ZADD lex 0 a 0 b 0 c 0 d
        ZRANGEBYLEX lex [b +
        ZRANGEBYLEX lex - (c
        ZRANGEBYLEX lex x y
        ZREVRANGEBYLEX lex + [b
        ZLEXCOUNT lex - +
        ZREMRANGEBYLEX lex [a [b
        ZREMRANGEBYRANK z 0 0
        ZREMRANGEBYSCORE z 4 4.5
        ZREM z e nothing
        ZPOPMIN z
        ZPOPMAX z 2
        ZPOPMIN missing
        ZPOPMIN missing 2
        ZPOPMIN z -1
        ZADD {z}1 1 a 2 b
        ZADD {z}2 3 b 4 c
        ZUNION 2 {z}1 {z}2 WITHSCORES
        ZUNION 2 {z}1 {z}2 WEIGHTS 2 3 AGGREGATE MAX WITHSCORES
        ZINTER 2 {z}1 {z}2 WITHSCORES
        ZINTERCARD 2 {z}1 {z}2
        ZDIFF 2 {z}1 {z}2 WITHSCORES
        ZUNIONSTORE {z}3 2 {z}1 {z}2
        ZINTERSTORE {z}4 2 {z}1 {z}2 AGGREGATE MIN
        ZDIFFSTORE {z}5 2 {z}1 {z}2
        ZRANGESTORE {z}6 {z}3 0 1
        ZRANGE {z}6 0 -1 WITHSCORES
        ZUNION 0 {z}1
        ZUNIONSTORE {z}3 abc {z}1
        ZMPOP 2 {z}missing {z}1 MIN
        ZMPOP 1 {z}missing MAX COUNT 2
        ZRANDMEMBER missing
        ZRANDMEMBER missing 2
        ZSCAN {z}3 0
        ZSCAN {z}3 0 MATCH a COUNT 10
        OBJECT ENCODING {z}3
        GET {z}3
    """,
    "streams": r"""
        XADD s 1-1 f v
        XADD s 1-2 f v g w
        XADD s 2-* f v
        XADD s 1-1 f v
        XADD s 0-0 f v
        XADD s abc f v
        XADD s 3-0 f
        XADD missing NOMKSTREAM 1-1 f v
        XADD s MAXLEN 10 3-0 f v
        XLEN s
        XLEN missing
        XRANGE s - +
        XRANGE s 1-2 2 COUNT 1
        XRANGE s (1-1 +
        XRANGE s abc +
        XREVRANGE s + - COUNT 2
        XREAD COUNT 2 STREAMS s 0
        XREAD STREAMS s 99
        XREAD STREAMS {x}1 {x}2 0 0
        XREAD STREAMS s
        XREAD COUNT 1 WRONG STREAMS s 0
        XDEL s 1-2 9-9
        XGROUP CREATE s g 0
        XGROUP CREATE s g 0
        XGROUP CREATE missing g 0
        XGROUP CREATE made g $ MKSTREAM
        XGROUP CREATECONSUMER s g alice
        XGROUP CREATECONSUMER s g alice
        XGROUP HELP
        XGROUP WRONG s g
        XREADGROUP GROUP g alice COUNT 1 STREAMS s >
        XREADGROUP GROUP g bob STREAMS s >
        XREADGROUP GROUP g bob STREAMS s 0
        XREADGROUP GROUP nobody bob STREAMS s >
        XREADGROUP GROUP g bob STREAMS missing >
        XPENDING s g
        XPENDING made g
        XPENDING s nobody
        XACK s g 1-1
        XACK s g 1-1
        XACK missing g 1-1
        XCLAIM s g carol 0 2-0 JUSTID
        XCLAIM s g carol 0 9-9
        XAUTOCLAIM s g carol 0 0 COUNT 10 JUSTID
        XSETID s 9-9
        XSETID s 1-0
        XINFO STREAM s
        XINFO GROUPS s
        XINFO STREAM missing
        XINFO HELP
        XGROUP SETID s g 0
        XGROUP DELCONSUMER s g alice
        XGROUP DESTROY s g
        XGROUP DESTROY s g
        XTRIM s MAXLEN 1
        XTRIM s MINID 99
        XTRIM s WRONG 1
        XLEN s
        TYPE s
        GET s
        XADD s
    """,
    "geo, bitmaps, hyperloglog": r"""
        GEOADD Sicily 13.361389 38.115556 Palermo 15.087269 37.502669 Catania
        GEOADD Sicily NX 13 38 Palermo
        GEOADD Sicily XX CH 13.5 38.2 Palermo
        GEOADD Sicily 200 100 nowhere
        GEODIST Sicily Palermo Catania
        GEODIST Sicily Palermo Catania km
        GEODIST Sicily Palermo nowhere
        GEODIST Sicily Palermo Catania parsec
        GEOHASH Sicily Palermo Catania nowhere
        GEOPOS Sicily Palermo nowhere
        GEOSEARCH Sicily FROMLONLAT 15 37 BYRADIUS 200 km ASC
        GEOSEARCH Sicily FROMMEMBER Palermo BYBOX 400 400 km ASC WITHCOORD WITHDIST WITHHASH
        GEOSEARCH Sicily FROMLONLAT 15 37 BYRADIUS 200 km COUNT 1 ASC
        GEOSEARCH Sicily BYRADIUS 200 km
        GEOSEARCHSTORE {Sicily}2 Sicily FROMLONLAT 15 37 BYRADIUS 200 km
        GEORADIUS Sicily 15 37 200 km ASC
        GEORADIUS_RO Sicily 15 37 200 km WITHDIST ASC
        GEORADIUS Sicily 15 37 200 km STORE {Sicily}3
        GEORADIUSBYMEMBER Sicily Catania 200 km ASC
        GEORADIUSBYMEMBER_RO Sicily nowhere 200 km
        ZCARD {Sicily}3
        SETBIT bits 7 1
        SETBIT bits 7 0
        SETBIT bits 3 1
        SETBIT bits -1 1
        SETBIT bits 4294967296 1
        SETBIT bits 1 2
        GETBIT bits 3
        GETBIT bits 100
        SET text foobar
        BITCOUNT text
        BITCOUNT text 0 0
        BITCOUNT text 5 30 BIT
        BITCOUNT missing
        BITCOUNT text 1
        BITPOS text 1
        BITPOS text 0 2
        BITPOS missing 1
        BITPOS text 2
        SET {b}1 foobar
        SET {b}2 abcdef
        BITOP AND {b}3 {b}1 {b}2
        BITOP XOR {b}4 {b}1 {b}2
        BITOP NOT {b}5 {b}1
        BITOP NOT {b}5 {b}1 {b}2
        GET {b}3
        GET {b}5
        BITFIELD field INCRBY i5 100 1 GET u4 0
        BITFIELD field SET u8 #1 200 OVERFLOW FAIL INCRBY u8 #1 100
        BITFIELD field GET u64 0
        BITFIELD_RO field GET u4 0
        BITFIELD_RO field SET u4 0 1
        PFADD hll a b c d
        PFADD hll a
        PFCOUNT hll
        PFADD {h}1 a b
        PFADD {h}2 b c
        PFCOUNT {h}1 {h}2
        PFMERGE {h}3 {h}1 {h}2
        PFCOUNT {h}3
        PFCOUNT missing
        PFADD text a
    """,
    "sort": r"""
        RPUSH l 3 1 2 10
        SORT l
        SORT l DESC
        SORT l ALPHA
        SORT l LIMIT 1 2
        SORT l BY nosort
        SORT l STORE {l}sorted
        LRANGE {l}sorted 0 -1
        SORT_RO l
        SORT_RO l STORE {l}x
        SORT l LIMIT a b
        SORT missing
        RPUSH words c a b
        SORT words
        SORT words ALPHA DESC
        SORT words ALPHA GET #
        SET string x
        SORT string
    """,
    "scripts": r"""
        EVAL "return 1" 0
        EVAL "return {1,2,{3,'four'},false,true}" 0
        EVAL "return redis.call('set', KEYS[1], ARGV[1])" 1 k v
        EVAL "return redis.call('get', KEYS[1])" 1 k
        EVAL "return redis.status_reply('FINE')" 0
        EVAL "return redis.error_reply('MINE is an error')" 0
        EVAL "return redis.call('incr', KEYS[1])" 1 k
        EVAL "return redis.pcall('incr', KEYS[1])" 1 k
        EVAL "return redis.sha1hex('')" 0
        EVAL "return {KEYS[1], KEYS[2], ARGV[1]}" 2 {k}1 {k}2 a
        EVAL "syntax error" 0
        EVAL "return 1" abc
        EVAL "return 1" -1
        EVAL "return 1" 2 k
        EVAL "return 1"
        EVAL "#!lua flags=no-writes\nreturn redis.call('get', KEYS[1])" 1 k
        EVAL "#!lua flags=no-writes\nreturn redis.call('set', KEYS[1], 1)" 1 k
        EVAL_RO "return redis.call('get', KEYS[1])" 1 k
        EVAL_RO "return redis.call('set', KEYS[1], 1)" 1 k
        EVAL "redis.setresp(3); return {double=3.5}" 0
        EVAL "return {map={a=1}}" 0
        EVAL "return {double=3.5}" 0
        SCRIPT LOAD "return 'loaded ' .. KEYS[1]"
        EVALSHA 2067d915024a3e1657c4169c84f809f8ebe75f8e 1 k
        SCRIPT LOAD "return redis.call('get', KEYS[1])"
        EVALSHA d3c21d0c2b9ca22f82737626a27bcaf5d288f99f 1 k
        EVALSHA_RO d3c21d0c2b9ca22f82737626a27bcaf5d288f99f 1 k
        EVALSHA ffffffffffffffffffffffffffffffffffffffff 1 k
        EVALSHA short 0
        SCRIPT EXISTS d3c21d0c2b9ca22f82737626a27bcaf5d288f99f ffffffffffffffffffffffffffffffffffffffff
        SCRIPT EXISTS
        SCRIPT LOAD "syntax error"
        SCRIPT SHOW d3c21d0c2b9ca22f82737626a27bcaf5d288f99f
        SCRIPT SHOW ffffffffffffffffffffffffffffffffffffffff
        SCRIPT KILL
        SCRIPT FLUSH
        SCRIPT FLUSH WRONG
        EVALSHA d3c21d0c2b9ca22f82737626a27bcaf5d288f99f 1 k
        SCRIPT HELP
        SCRIPT WRONG
        SCRIPT
    """,
    "functions": r"""
        FUNCTION FLUSH
        FUNCTION LOAD "#!lua name=one\nserver.register_function('put', function(k, a) return server.call('set', k[1], a[1]) end)"
        FUNCTION LOAD "#!lua name=one\nserver.register_function('put', function(k, a) return 1 end)"
        FUNCTION LOAD REPLACE "#!lua name=one\nserver.register_function('put', function(k, a) return server.call('set', k[1], a[1]) end)"
        FUNCTION LOAD "#!lua name=two\nserver.register_function{function_name='read', callback=function(k) return server.call('get', k[1]) end, flags={'no-writes'}}"
        FUNCTION LOAD "no shebang"
        FCALL put 1 k v
        FCALL read 1 k
        FCALL_RO read 1 k
        FCALL_RO put 1 k v
        FCALL nothing 1 k
        FCALL put abc
        FCALL put 5 k
        FUNCTION LIST LIBRARYNAME one
        FUNCTION LIST LIBRARYNAME two WITHCODE
        FUNCTION LIST LIBRARYNAME nothing
        FUNCTION LIST WRONG
        FUNCTION STATS
        FUNCTION KILL
        FUNCTION DELETE one
        FUNCTION DELETE one
        FUNCTION LIST
        FUNCTION RESTORE garbage
        FUNCTION FLUSH WRONG
        FUNCTION FLUSH
        FUNCTION LIST
        FUNCTION HELP
        FUNCTION WRONG
    """,
    "errors": r"""
        SET s x
        LPUSH l x
        LPUSH s x
        INCR s
        INCR l
        HGET s f
        SADD l x
        ZADD s 1 x
        XADD s * f v
        PFADD l x
        GET l
        APPEND l x
        SETBIT l 0 1
        GEOADD s 1 1 x
        GET
        GET a b
        SET a
        SET
        DEL
        GETRANGE s 0
        EXPIRE s
        NOSUCHCOMMAND
        NOSUCHCOMMAND with some arguments
        NOSUCHCOMMAND "an argument that is\r\non two lines" "\x00zero"
        nosuchcommand aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa bbbb
        GET|SET x
        CONFIG|GET x
        CONFIG WRONG
        CONFIG
        CLIENT
        CLIENT WRONG
        OBJECT
        OBJECT WRONG x
        XINFO WRONG x
        COMMAND WRONG
        MEMORY WRONG
        MEMORY
        LATENCY WRONG
        PUBSUB WRONG
        SLOWLOG WRONG
        ECHO
        ECHO a b
        PING a b
        SELECT
        SELECT a b
        EXEC
        DISCARD
        EXEC now
        MULTI now
        DBSIZE now
        GeT s
        gEt s
        WAIT
        WAIT a 0
        WAIT 0 a
        WAIT 0 -1
        WAITAOF 2 0 0
        WAITAOF 0 -1 0
        WAITAOF a 0 0
        LOLWUT VERSION WRONG
    """,
    "server": r"""
        PING
        PING hello
        ping "\x00"
        ECHO hello
        ECHO ""
        TIME
        COMMAND COUNT
        COMMAND INFO get
        COMMAND INFO get nothing mset
        COMMAND INFO
        COMMAND DOCS set
        COMMAND DOCS nothing
        COMMAND LIST
        COMMAND LIST FILTERBY ACLCAT geo
        COMMAND LIST FILTERBY PATTERN xr*
        COMMAND LIST FILTERBY WRONG x
        COMMAND GETKEYS MSET a b c d
        COMMAND GETKEYS EVAL "return 1" 2 a b c
        COMMAND GETKEYS PING
        COMMAND GETKEYS NOSUCHCOMMAND
        COMMAND GETKEYS SET
        COMMAND GETKEYSANDFLAGS SET a b
        COMMAND
        COMMAND HELP
        CONFIG GET maxmemory-policy
        CONFIG GET list-max-*
        CONFIG GET nothing
        CONFIG GET maxmemory maxmemory-policy
        CONFIG HELP
        MEMORY HELP
        MEMORY USAGE missing
        MEMORY PURGE
        SLOWLOG HELP
        SLOWLOG RESET
        SLOWLOG LEN
        SLOWLOG GET
        COMMANDLOG LEN large-reply
        COMMANDLOG GET 10 wrong
        LATENCY HELP
        LATENCY RESET
        LATENCY LATEST
        LATENCY HISTORY nothing
        LATENCY GRAPH nothing
        ACL WHOAMI
        ACL CAT
        ACL CAT geo
        ACL CAT wrong
        PUBLISH channel message
        SPUBLISH channel message
        SELECT 1
        SET in-one x
        DBSIZE
        SELECT 0
        EXISTS in-one
        SELECT 16
        SELECT -1
        SELECT abc
        SELECT 99999999999999999999
        SELECT 15
        SELECT 1
        FLUSHDB
        SELECT 0
        LOLWUT VERSION 1 1 1 1
        UNWATCH
        DISCARD
        EXEC
    """,
}


def _words(text: str) -> list[list[bytes]]:
    return [split_inline(line.strip().encode()) for line in text.splitlines() if line.strip()]


CORPUS: dict[str, list[list[bytes]]] = {group: _words(text) for group, text in _GROUPS.items()}
"""Group name -> its commands, each a list of words."""
