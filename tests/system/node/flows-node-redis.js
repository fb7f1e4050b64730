// What applications do with node-redis: pub/sub, blocking, streams with groups, scripts, transactions, caching.
// Usage: node flows-node-redis.js URL
import assert from "node:assert/strict";
import { createClient, createClientPool, WatchError } from "redis";

const url = process.argv[2];
const fail = (error) => { throw error; };
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const until = async (condition) => { while (!condition()) await pause(5); };

for (const RESP of [2, 3]) {
  const client = createClient({ url, RESP }).on("error", fail);
  await client.connect();
  await client.flushAll();

  // Pub/sub: channels, patterns, shard channels.
  const subscriber = client.duplicate().on("error", fail);
  await subscriber.connect();
  const heard = [];
  await subscriber.subscribe("news", (message, channel) => heard.push([channel, message]));
  await subscriber.pSubscribe("user:*", (message, channel) => heard.push([channel, message]));
  await subscriber.sSubscribe("{s}shard", (message, channel) => heard.push([channel, message]));
  for (let at = 0; at < 100; at++) await client.publish("news", String(at));
  await client.publish("user:1", "hello");
  await client.sPublish("{s}shard", "sharded");
  await until(() => heard.length === 102);
  assert.deepEqual(heard.slice(0, 100), Array.from({ length: 100 }, (_, at) => ["news", String(at)]));
  assert.deepEqual(new Set(heard.slice(100).map(String)), new Set(["user:1,hello", "{s}shard,sharded"]));
  await subscriber.unsubscribe("news");
  await client.publish("news", "unheard");
  await client.publish("user:2", "last");
  await until(() => heard.length === 103);
  assert.deepEqual(heard[102], ["user:2", "last"]);
  await subscriber.close();

  // Blocking commands, on connections of their own.
  const worker = client.duplicate().on("error", fail);
  await worker.connect();
  const popped = worker.blPop("queue", 0);
  await client.rPush("queue", "job");
  assert.deepEqual({ ...(await popped) }, { key: "queue", element: "job" });
  assert.equal(await worker.blPop("queue", 0.05), null);
  const moved = worker.blMove("{q}from", "{q}to", "LEFT", "RIGHT", 0);
  await client.lPush("{q}from", "x");
  assert.equal(await moved, "x");
  const least = worker.bzPopMin("board", 0);
  await client.zAdd("board", { score: 1, value: "first" });
  assert.deepEqual({ ...(await least) }, { key: "board", value: "first", score: 1 });

  // A stream with a group of consumers.
  await client.xGroupCreate("events", "group", "$", { MKSTREAM: true });
  const read = (consumer) =>
    worker.xReadGroup("group", consumer, { key: "events", id: ">" }, { COUNT: 10, BLOCK: 5000 });
  const waiting = read("one");
  const first = await client.xAdd("events", "*", { kind: "created" });
  const got = JSON.stringify(await waiting);  // of another form in RESP3
  assert.ok(got.includes(first) && got.includes("created"), got);
  assert.equal((await client.xPending("events", "group")).pending, 1);
  const claimed = await client.xAutoClaim("events", "group", "two", 0, "0");
  assert.equal(claimed.messages[0].id, first);
  assert.equal(await client.xAck("events", "group", first), 1);
  assert.equal((await client.xInfoGroups("events"))[0].pending, 0);
  assert.equal(await client.xLen("events"), 1);

  // Scripts and functions.
  const sha = await client.scriptLoad("return {KEYS[1], ARGV[1]}");
  assert.deepEqual(await client.evalSha(sha, { keys: ["k"], arguments: ["v"] }), ["k", "v"]);
  assert.deepEqual(await client.scriptExists([sha]), [1]);
  await client.functionLoad("#!lua name=lib\nserver.register_function('twice', function(k, a) return a[1] * 2 end)", { REPLACE: true });
  assert.equal(await client.fCall("twice", { keys: ["k"], arguments: ["21"] }), 42);
  await client.functionFlush();

  // Transactions: optimistic, aborted, discarded.
  await client.set("{t}stock", "5");
  const take = async () => {
    for (;;) {
      const own = client.duplicate().on("error", fail);
      await own.connect();
      try {
        await own.watch("{t}stock");
        const left = Number(await own.get("{t}stock"));
        return await own.multi().set("{t}stock", String(left - 1)).rPush("{t}sold", String(left)).exec();
      } catch (error) {
        if (!(error instanceof WatchError)) throw error;
      } finally {
        own.destroy();
      }
    }
  };
  await Promise.all([take(), take(), take(), take(), take()]);
  assert.equal(await client.get("{t}stock"), "0");
  assert.deepEqual(await client.lRange("{t}sold", 0, -1), ["5", "4", "3", "2", "1"]);

  await worker.close();
  await client.close();
}

// A pool, and client-side caching.
const pool = createClientPool({ url, RESP: 3 }, { minimum: 2, maximum: 8 });
pool.on("error", fail);
await pool.connect();
await Promise.all(Array.from({ length: 200 }, (_, at) => pool.set(`pooled:${at}`, String(at))));
assert.equal(await pool.get("pooled:150"), "150");
await pool.close();

const caching = createClient({ url, RESP: 3, clientSideCache: { ttl: 0, maxEntries: 100, evictPolicy: "LRU" } });
await caching.on("error", fail).connect();
const other = createClient({ url }).on("error", fail);
await other.connect();
await other.set("cached", "1");
assert.equal(await caching.get("cached"), "1");
assert.equal(await caching.get("cached"), "1");
await other.set("cached", "2");
for (let tries = 0; (await caching.get("cached")) !== "2"; tries++) {
  assert.ok(tries < 1000, "the cache was never told");
  await pause(5);
}
await caching.close();
await other.flushAll();
await other.close();
console.log("fine");
