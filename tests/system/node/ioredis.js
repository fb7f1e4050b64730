// ioredis with its defaults.  Usage: node ioredis.js URL
import assert from "node:assert/strict";
import { Redis } from "ioredis";

const redis = new Redis(process.argv[2], { connectionName: "smoke" });
redis.on("error", (error) => { throw error; });
await redis.flushall();
assert.equal(await redis.ping(), "PONG");
assert.equal(await redis.set("a", "1", "EX", 1000), "OK");
assert.equal(await redis.get("a"), "1");
assert.equal(await redis.get("missing"), null);
assert.equal(await redis.mset({ k1: "v1", k2: "v2", k3: "v3", k4: "v4" }), "OK");
assert.deepEqual(await redis.mget("k4", "k1", "missing", "k2"), ["v4", "v1", null, "v2"]);
assert.equal(await redis.del("k1", "k2", "missing"), 2);
await redis.hset("h", { f: 1, g: 2 });
assert.deepEqual(await redis.hgetall("h"), { f: "1", g: "2" });
assert.equal(await redis.rpush("l", "x", "y", "z"), 3);
assert.deepEqual(await redis.lrange("l", 0, -1), ["x", "y", "z"]);
assert.deepEqual(await redis.getBuffer("a"), Buffer.from("1"));
const bytes = Buffer.from(Array.from({ length: 256 }, (_, at) => at));
await redis.set("bytes", bytes);
assert.deepEqual(await redis.getBuffer("bytes"), bytes);

const pipeline = redis.pipeline();
for (let at = 0; at < 3000; at++) pipeline.set(`many:${at}`, at).get(`many:${at}`);
const replies = await pipeline.exec();
assert.equal(replies.length, 6000);
replies.forEach(([error, reply], at) => assert.deepEqual([error, reply], [null, at % 2 ? String((at - 1) / 2) : "OK"]));

const scanned = new Set();
for await (const keys of redis.scanStream({ match: "many:*", count: 300 })) for (const key of keys) scanned.add(key);
assert.equal(scanned.size, 3000);

assert.deepEqual(await redis.multi().set("{t}a", 1).incr("{t}a").exec(), [[null, "OK"], [null, 2]]);
assert.deepEqual(await redis.multi({ pipeline: false }), "OK");
assert.equal(await redis.incr("{t}a"), "QUEUED");
assert.deepEqual(await redis.exec(), [[null, 3]]);
await assert.rejects(redis.multi().set("a", "1").set("b", "1").exec(), /CROSSSLOT/);

await redis.watch("{t}a");
const other = redis.duplicate();
await other.set("{t}a", "changed");
assert.equal(await redis.multi().set("{t}a", "mine").exec(), null);
assert.equal(await redis.get("{t}a"), "changed");

redis.defineCommand("both", { numberOfKeys: 2, lua: "return {redis.call('get', KEYS[1]), redis.call('get', KEYS[2])}" });
assert.deepEqual(await redis.both("{t}a", "{t}b"), ["changed", null]);
assert.deepEqual(await redis.both("{t}b", "{t}a"), [null, "changed"]);

await redis.set("written", "1");
assert.equal(await redis.wait(1, 10_000), 1);
await assert.rejects(redis.lpush("a", "x"), /WRONGTYPE/);
assert.equal(await redis.client("GETNAME"), "smoke");
assert.match(await redis.info(), /redis_version:/);
other.disconnect();
assert.equal(await redis.quit(), "OK");
console.log("fine");
