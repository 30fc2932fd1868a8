/** OpenAI's package for Node, unchanged but for the address. */

import assert from "node:assert/strict";
import { createReadStream } from "node:fs";
import { readFile } from "node:fs/promises";
import net from "node:net";
import { test } from "node:test";

import OpenAI, { toFile } from "openai";

import { BASE, KEY, PHOTO } from "./servers.mjs";

const SMALL = { prompt: "make it snow", size: "256x256", seed: 7 };

function client({ base = BASE, key = KEY } = {}) {
  return new OpenAI({ baseURL: `${base}/v1`, apiKey: key, maxRetries: 0 });
}

function pictureOf({ b64_json }) {
  const bytes = Buffer.from(b64_json, "base64");
  assert.equal(bytes.subarray(1, 4).toString(), "PNG");
  return { width: bytes.readUInt32BE(16), height: bytes.readUInt32BE(20) };
}

/** A relay to the server, which keeps what the client sends. */
async function relayed(t) {
  const sent = [];
  const { hostname, port } = new URL(BASE);
  const relay = net.createServer((near) => {
    const far = net.connect(port, hostname);
    near.on("data", (data) => sent.push(data)).on("error", () => far.destroy()).pipe(far);
    far.on("error", () => near.destroy()).pipe(near);
  });
  await new Promise((resolve) => relay.listen(0, hostname, resolve));
  t.after(() => relay.close());
  return { base: `http://${hostname}:${relay.address().port}`, head: () => Buffer.concat(sent).toString("latin1").split("\r\n\r\n")[0] };
}

test("a file's stream is edited, which comes in chunks and without its length", async (t) => {
  const { base, head } = await relayed(t);

  const reply = await client({ base }).images.edit({ ...SMALL, image: createReadStream(PHOTO), size: "256x320" });

  assert.match(head(), /transfer-encoding: chunked/i);
  assert.doesNotMatch(head(), /content-length/i);
  assert.deepEqual(pictureOf(reply.data[0]), { width: 256, height: 320 });
  assert.equal(reply.seed, 7);
});

test("a list of one picture is edited into as many as were asked for", async () => {
  const image = await toFile(await readFile(PHOTO), "chelsea.png", { type: "image/png" });

  const reply = await client().images.edit({ ...SMALL, image: [image], n: 2, model: "gpt-image-1" });

  assert.deepEqual(reply.data.map(pictureOf), Array(2).fill({ width: 256, height: 256 }));
});

for (const number of [0, 1, 3]) {
  test(`a stream has the ${number} partial images that were asked for, then the picture`, async () => {
    const stream = await client().images.edit({ ...SMALL, image: createReadStream(PHOTO), stream: true, partial_images: number });

    const events = await collected(stream);
    const completed = events.pop();

    assert.deepEqual(events.map(({ type }) => type), Array(number).fill("image_edit.partial_image"));
    assert.deepEqual(events.map((event) => event.partial_image_index), [...Array(number).keys()]);
    assert.equal(completed.type, "image_edit.completed");
    assert.deepEqual(pictureOf(completed), { width: 256, height: 256 });
  });
}

test("a wrong field is an error that names it", async () => {
  const asked = client().images.edit({ ...SMALL, image: createReadStream(PHOTO), mask: createReadStream(PHOTO) });

  await assert.rejects(asked, (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError, String(error));
    assert.deepEqual([error.param, error.type, error.code], ["mask", "invalid_request_error", "invalid_request"]);
    assert.ok(error.requestID);
    return true;
  });
});

test("a failure in a stream is an error", async () => {
  const stream = await client().images.edit({ ...SMALL, prompt: "fail", image: createReadStream(PHOTO), stream: true });

  await assert.rejects(collected(stream), /the edit failed/);
});

test("a failed edit is not sent again, though the client would repeat it", async () => {
  let asked = 0;
  const counting = (...args) => (asked++, fetch(...args));
  const patient = new OpenAI({ baseURL: `${BASE}/v1`, apiKey: KEY, maxRetries: 2, fetch: counting });

  await assert.rejects(patient.images.edit({ ...SMALL, prompt: "fail", image: createReadStream(PHOTO) }), OpenAI.InternalServerError);

  assert.equal(asked, 1);
});

test("a wrong key is refused", async () => {
  await assert.rejects(client({ key: "another-key" }).models.list(), OpenAI.AuthenticationError);
});

test("the model is listed", async () => {
  const models = await collected(await client().models.list());

  assert.deepEqual(models.map(({ id }) => id), ["qwen-image-edit"]);
});

async function collected(iterable) {
  const all = [];
  for await (const one of iterable) all.push(one);
  return all;
}
