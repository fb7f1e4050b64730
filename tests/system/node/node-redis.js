// node-redis with its defaults, then with RESP3.  Usage: node node-redis.js URL
import assert from "node:assert/strict";
import { createClient, WatchError } from "redis";

const url = process.argv[2];

for (const RESP of [2, 3]) {
  const client = createClient({ url, RESP, name: "smoke" });
  client.on("error", (error) => { throw error; });
  await client.connect();
  await client.flushAll();
  assert.equal(await client.ping(), "PONG");
  assert.equal(await client.set("a", "1"), "OK");
  assert.equal(await client.get("a"), "1");
  assert.equal(await client.get("missing"), null);
  assert.equal(await client.incr("a"), 2);
  assert.equal(await client.mSet({ k1: "v1", k2: "v2", k3: "v3", k4: "v4" }), "OK");
  assert.deepEqual(await client.mGet(["k4", "k1", "missing", "k2"]), ["v4", "v1", null, "v2"]);
  assert.equal(await client.del(["k1", "k2", "missing"]), 2);
  assert.equal(await client.hSet("h", { f: "1", g: "2" }), 2);
  assert.deepEqual({ ...(await client.hGetAll("h")) }, { f: "1", g: "2" });
  assert.equal(await client.rPush("l", ["x", "y", "z"]), 3);
  assert.deepEqual(await client.lRange("l", 0, -1), ["x", "y", "z"]);
  await client.zAdd("z", [{ score: 1.5, value: "m" }, { score: 2, value: "n" }]);
  assert.deepEqual(await client.zRangeWithScores("z", 0, -1), [{ value: "m", score: 1.5 }, { value: "n", score: 2 }]);
  assert.match(await client.xAdd("s", "*", { f: "v" }), /^\d+-\d+$/);
  assert.equal(await client.eval("return redis.call('get', KEYS[1])", { keys: ["a"], arguments: [] }), "2");

  const many = Array.from({ length: 2000 }, (_, at) => `many:${at}`);
  await Promise.all(many.map((key, at) => client.set(key, String(at))));
  const values = await Promise.all(many.map((key) => client.get(key)));
  assert.deepEqual(values, many.map((_, at) => String(at)));

  const scanned = new Set();
  for await (const keys of client.scanIterator({ MATCH: "many:*", COUNT: 200 })) for (const key of keys) scanned.add(key);
  assert.equal(scanned.size, 2000);
  assert.equal(await client.dbSize(), 2000 + 7);

  assert.deepEqual(await client.multi().set("{t}a", "1").incr("{t}a").get("{t}a").exec(), ["OK", 2, "2"]);
  assert.deepEqual(await client.multi().set("p1", "1").set("p2", "2").get("p3").execAsPipeline(), ["OK", "OK", null]);
  await assert.rejects(client.multi().set("a", "1").set("b", "1").exec(), /CROSSSLOT/);

  await client.watch("{t}a");
  const other = client.duplicate();
  other.on("error", (error) => { throw error; });
  await other.connect();
  await other.set("{t}a", "changed");
  await assert.rejects(client.multi().set("{t}a", "mine").exec(), WatchError);
  assert.equal(await client.get("{t}a"), "changed");

  await client.set("written", "1");
  assert.equal(await client.wait(1, 10_000), 1);
  await assert.rejects(client.lPush("a", "x"), /WRONGTYPE/);
  await client.select(3);
  assert.equal(await client.get("a"), null);
  assert.equal(await client.clientGetName(), "smoke");
  await other.close();
  await client.close();
}
console.log("fine");
