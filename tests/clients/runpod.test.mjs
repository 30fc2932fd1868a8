/** RunPod's package for JavaScript, unchanged but for the address. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import net from "node:net";
import { test } from "node:test";

import runpodSdk from "runpod-sdk";

import { BASE, KEY, PHOTO } from "./servers.mjs";

const FIELDS = {
  image: (await readFile(PHOTO)).toString("base64"),
  prompt: "make it snow",
  width: 256,
  height: 256,
  seed: 3,
};

const endpoint = runpodSdk(KEY, { baseUrl: `${BASE}/v2` }).endpoint("any-endpoint");

function job(fields = {}) {
  return { input: { ...FIELDS, ...fields } };
}

async function submitted(fields) {
  const { id, status } = await endpoint.run(job(fields));
  assert.equal(status, "IN_QUEUE");
  return id;
}

test("a job that is waited for comes with its output", async () => {
  const done = await endpoint.runSync(job());

  assert.deepEqual([done.status, done.completed, done.succeeded], ["COMPLETED", true, true]);
  assert.equal(done.output.seed, 3);
  assert.ok(Buffer.from(done.output.image, "base64").length > 1000);
});

test("a job that outlasts its caller's patience is there to be asked for", async () => {
  const done = await endpoint.runSync(job({ prompt: "pace 0.3" }), 1000);
  const later = await endpoint.statusSync(done.id);

  assert.equal(done.completed, false);
  assert.equal(later.status, "COMPLETED");
});

test("a job runs while its status is asked for", async () => {
  const id = await submitted();

  const { output, executionTime, delayTime, status } = await endpoint.statusSync(id);

  assert.deepEqual([status, output.seed], ["COMPLETED", 3]);
  assert.ok(executionTime >= 0 && delayTime >= 0);
  assert.equal((await endpoint.status(id)).status, "COMPLETED");
});

test("a stream tells each step once, and ends", async () => {
  const id = await submitted({ prompt: "pace 0.05" });

  const steps = [];
  for await (const { output } of endpoint.stream(id)) steps.push(output.step);

  assert.ok(steps.length > 0);
  assert.deepEqual(steps, [...new Set(steps)].sort((a, b) => a - b));
  assert.equal((await endpoint.status(id)).status, "COMPLETED");
});

test("a job is stopped on the device", async (t) => {
  const gate = net.createServer().listen(0, "127.0.0.1");
  await once(gate, "listening");
  const id = await submitted({ prompt: `gate ${gate.address().port}` });
  const [held] = await once(gate, "connection");
  t.after(() => (held.destroy(), gate.close()));
  held.on("error", () => {});

  assert.deepEqual(await endpoint.cancel(id), { id, status: "CANCELLED" });
  assert.equal((await endpoint.status(id)).status, "CANCELLED");
});

test("a wrong input fails its job with a sentence", async () => {
  const done = await endpoint.runSync(job({ rank: 7 }));

  assert.deepEqual([done.status, done.succeeded], ["FAILED", false]);
  assert.match(done.error, /^invalid_request: rank is 7, expected /);
});

test("health has the counts that the package declares", async () => {
  const { jobs, workers } = await endpoint.health();

  for (const name of ["completed", "failed", "inProgress", "inQueue", "retried"]) assert.equal(typeof jobs[name], "number", name);
  for (const name of ["idle", "initializing", "ready", "running", "throttled"]) assert.equal(typeof workers[name], "number", name);
});
