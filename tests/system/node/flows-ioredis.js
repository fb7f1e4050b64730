// What applications do with ioredis: pub/sub, blocking, streams with groups, scripts, transactions, auto pipelining.
// Usage: node flows-ioredis.js URL
import assert from "node:assert/strict";
import { Redis } from "ioredis";

const url = process.argv[2];
const connect = (options) => new Redis(url, options).on("error", (error) => { throw error; });
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const until = async (condition) => { while (!condition()) await pause(5); };

const redis = connect();
await redis.flushall();

// Pub/sub, and a connection that comes back resubscribes.
const subscriber = connect();
const heard = [];
subscriber.on("message", (channel, message) => heard.push([channel, message]));
subscriber.on("pmessage", (pattern, channel, message) => heard.push([pattern, channel, message]));
subscriber.on("smessage", (channel, message) => heard.push([channel, message]));
assert.equal(await subscriber.subscribe("news", "sport"), 2);
assert.equal(await subscriber.psubscribe("user:*"), 3);
await subscriber.ssubscribe("{s}shard");
await redis.publish("news", "one");
await redis.publish("user:1", "two");
await redis.spublish("{s}shard", "three");
await until(() => heard.length === 3);
assert.deepEqual(new Set(heard.map(String)), new Set(["news,one", "user:*,user:1,two", "{s}shard,three"]));
assert.deepEqual(await redis.pubsub("NUMSUB", "news", "nobody"), ["news", 1, "nobody", 0]);
subscriber.disconnect(true);
await new Promise((done) => subscriber.once("ready", done));
for (let tries = 0; (await redis.pubsub("NUMSUB", "sport"))[1] !== 1; tries++) {
  assert.ok(tries < 1000, "not subscribed again");
  await pause(5);
}
await redis.publish("sport", "again");
await until(() => heard.length === 4);
assert.equal(await subscriber.unsubscribe("news", "sport"), 1);
subscriber.disconnect();

// Blocking commands.
const worker = connect();
const popped = worker.brpop("{q}high", "{q}low", 0);
await redis.lpush("{q}low", "job");
assert.deepEqual(await popped, ["{q}low", "job"]);
assert.equal(await worker.blpop("{q}high", 0.05), null);
const moved = worker.blmove("{q}low", "{q}busy", "LEFT", "RIGHT", 0);
await redis.rpush("{q}low", "next");
assert.equal(await moved, "next");
const least = worker.bzpopmin("board", 0);
await redis.zadd("board", 1, "first");
assert.deepEqual(await least, ["board", "first", "1"]);

// A stream with a group of consumers.
await redis.xgroup("CREATE", "events", "group", "$", "MKSTREAM");
const waiting = worker.xreadgroup("GROUP", "group", "one", "COUNT", 10, "BLOCK", 5000, "STREAMS", "events", ">");
const id = await redis.xadd("events", "*", "kind", "created");
assert.deepEqual(await waiting, [["events", [[id, ["kind", "created"]]]]]);
assert.equal((await redis.xpending("events", "group"))[0], 1);
assert.equal((await redis.xautoclaim("events", "group", "two", 0, "0"))[1][0][0], id);
assert.equal(await redis.xack("events", "group", id), 1);
const tail = worker.xread("BLOCK", 0, "STREAMS", "events", "$");
await pause(20);
const later = await redis.xadd("events", "*", "kind", "changed");
assert.deepEqual(await tail, [["events", [[later, ["kind", "changed"]]]]]);

// Scripts: EVALSHA first, healed by EVAL; in pipelines as well.
redis.defineCommand("take", {
  numberOfKeys: 1,
  lua: "local n = redis.call('decr', KEYS[1]) if n < 0 then redis.call('incr', KEYS[1]) return 0 end return 1",
});
await redis.set("stock", 3);
assert.deepEqual(await Promise.all(Array.from({ length: 5 }, () => redis.take("stock"))), [1, 1, 1, 0, 0]);
await redis.script("FLUSH");
assert.equal(await redis.take("stock"), 0);
assert.deepEqual(await redis.pipeline().take("stock").get("stock").exec(), [[null, 0], [null, "0"]]);

// Transactions.
assert.deepEqual(await redis.multi([["set", "{t}a", "1"], ["get", "{t}a"]]).exec(), [[null, "OK"], [null, "1"]]);
const mixed = await redis.multi().set("{t}a", "x").incr("{t}a").get("{t}a").exec();
assert.equal(mixed[0][1], "OK");
assert.match(mixed[1][0].message, /not an integer/);
assert.equal(mixed[2][1], "x");
const other = connect();
for (let round = 0; round < 20; round++) {
  await redis.watch("{t}seen");
  await other.incr("{t}seen");
  assert.equal(await redis.multi().set("{t}seen", "mine").exec(), null);
}
assert.equal(await redis.get("{t}seen"), "20");

// Auto pipelining, key prefixes, a database of its own, MONITOR.
const auto = connect({ enableAutoPipelining: true, keyPrefix: "app:", db: 2 });
await Promise.all(Array.from({ length: 500 }, (_, at) => auto.set(`k${at}`, at)));
assert.deepEqual(await auto.mget("k1", "k499"), ["1", "499"]);
assert.equal(await redis.exists("app:k1"), 0);
const watcher = connect();
const monitor = await watcher.monitor();
const shown = new Promise((done) => monitor.on("monitor", (time, args) => args[0] === "set" && done(args)));
await redis.set("watched", "1");
assert.deepEqual(await shown, ["set", "watched", "1"]);
monitor.disconnect();
watcher.disconnect();

await redis.flushall();
for (const each of [auto, other, worker, redis]) await each.quit();
console.log("fine");
