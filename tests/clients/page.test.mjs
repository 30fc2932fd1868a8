/**
 * The page in a real browser, against servers that run.
 *
 * BASE_URL: a server of the demo model without a key. LOCKED_URL and LOCKED_KEY: one that has a key, and the key.
 * CHROMIUM: the browser, /usr/bin/chromium where it is not set. PYTHON: for a test that runs Python, else python3.
 */

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { copyFile, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

import { chromium } from "playwright-core";

const BASE = withSlash(needed("BASE_URL"));
const LOCKED = withSlash(needed("LOCKED_URL"));
const KEY = needed("LOCKED_KEY");
const PHOTO = fileURLToPath(new URL("../photos/chelsea.png", import.meta.url));
const AXE = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

/** Milliseconds after which an event is taken for one that never comes; a busy machine is slow. */
const PATIENCE = 180_000;

/** Fields of an edit that takes a CPU about a second. */
const SMALL = "width=256&height=256&steps=8&seed=42";

let browser, folder;

before(async () => {
  folder = await mkdtemp(join(tmpdir(), "page-"));
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
});

after(async () => {
  await browser?.close();
  await rm(folder, { recursive: true, force: true });
});

function needed(name) {
  if (!process.env[name]) throw new Error(`${name} is not set, expected the address of a server or its key`);
  return process.env[name];
}

function withSlash(url) {
  return url.endsWith("/") ? url : `${url}/`;
}

/** A page of its own, which is closed with the test; the test fails where the page broke a rule on its way. */
async function opened(t, { address = BASE, fragment = "", ...options } = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, reducedMotion: "reduce", ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE);
  const broken = [];
  // Who waits for a chooser also asks the browser to report it, and on a busy machine a key press overtakes that request.
  page.on("filechooser", () => {});
  page.on("pageerror", (error) => broken.push(`an exception: ${error.message}`));
  page.on("console", (message) => /Content.Security.Policy/i.test(message.text()) && broken.push(message.text()));
  page.on("request", (request) => !isOwn(request.url(), address) && broken.push(`a request to ${request.url()}`));
  t.after(async () => {
    await context.close();
    assert.deepEqual(broken, []);
  });
  await page.goto(`${address}#${fragment}`);
  return page;
}

function isOwn(url, address) {
  const asked = new URL(url);
  return ["blob:", "data:"].includes(asked.protocol) || asked.origin === new URL(address).origin;
}

async function withPhoto(page, file = PHOTO) {
  await page.setInputFiles("#file", file);
  await page.locator("#picture").waitFor();
}

/** Choose the photo, ask for a prompt, and wait for the result. */
async function edited(page, prompt = "make it blue") {
  if (await page.locator("#drop").isVisible()) await withPhoto(page);
  await page.fill("#prompt", prompt);
  const [reply] = await Promise.all([finalReply(page), page.click("#go")]);
  await page.locator("#actions").waitFor();
  return reply;
}

async function finalReply(page) {
  return (await page.waitForResponse((response) => response.url().includes("/status/"))).json();
}

const value = (page, id) => page.locator(`#${id}`).inputValue();
const clip = (page) => page.locator("#after").evaluate((image) => image.style.clipPath);
const focused = (page) => page.evaluate(() => document.activeElement.id || document.activeElement.textContent.trim());
const unfold = (page) => page.locator("details").evaluateAll((all) => all.forEach((one) => { if (one.id !== "server") one.open = true; }));

async function tabTo(page, words) {
  for (let presses = 0; presses < 40; presses++) {
    await page.keyboard.press("Tab");
    if ((await focused(page)).includes(words)) return;
  }
  assert.fail(`the Tab key does not come to ${words}`);
}

/** Width and height of a PNG, from its header. */
function sidesOf(png) {
  assert.equal(png.subarray(1, 4).toString(), "PNG");
  return [png.readUInt32BE(16), png.readUInt32BE(20)];
}

test("a photo goes up, its steps and a preview are shown, and the result is compared and downloaded", async (t) => {
  const page = await opened(t, { fragment: SMALL });
  await page.evaluate(() => {
    window.seen = [];
    const note = () => window.seen.push([document.getElementById("busy-text").textContent, document.getElementById("bar").getAttribute("value"), document.getElementById("after").src.slice(0, 15)]);
    new MutationObserver(note).observe(document.getElementById("stage"), { subtree: true, childList: true, attributes: true });
  });

  const reply = await edited(page, "Make it blue!");

  const seen = await page.evaluate(() => window.seen);
  assert.ok(seen.some(([words, bar]) => /^Step \d of 8$|^Finishing/.test(words) && Number(bar) > 0));
  assert.ok(seen.some(([, , source]) => source === "data:image/webp"));
  assert.match(await clip(page), /50%/);
  const [download] = await Promise.all([page.waitForEvent("download"), page.click("#download")]);
  assert.equal(download.suggestedFilename(), "chelsea-make-it-blue-42.png");
  const file = await readFile(await download.path());
  assert.deepEqual(sidesOf(file), [256, 256]);
  assert.equal(file.toString("base64"), reply.output.image);
});

test("the slider follows the pointer and the keys, and a held button shows the photo", async (t) => {
  const page = await opened(t, { fragment: SMALL });
  await edited(page);
  const box = await page.locator("#canvas").boundingBox();

  await page.mouse.move(box.x + box.width / 2, box.y + 20);
  await page.mouse.down();
  await page.mouse.move(box.x + box.width / 4, box.y + 20);
  await page.mouse.up();
  assert.ok(Math.abs(Number(await value(page, "range")) - 25) <= 1);
  await page.locator("#range").press("End");
  assert.match(await clip(page), /100%/);
  await page.locator("#range").press("Home");
  assert.match(await clip(page), / 0%|^inset\(0px\)$/);

  await page.locator("#hold").focus();
  await page.keyboard.down("Space");
  assert.match(await clip(page), /100%/);
  await page.keyboard.up("Space");
  assert.doesNotMatch(await clip(page), /100%/);
});

test("the picture zooms by its buttons and by the keys", async (t) => {
  const page = await opened(t);
  await withPhoto(page);
  const width = async () => (await page.locator("#canvas").boundingBox()).width;
  const fitted = await width();

  await page.getByRole("button", { name: "Zoom in" }).click();
  const larger = await width();
  await page.locator("#view").press("+");

  assert.ok(larger > fitted * 1.4 && (await width()) > larger * 1.4);
  await page.locator("#view").press("0");
  assert.equal(await width(), fitted);
});

test("a cancel stops the edit and leaves the photo", async (t) => {
  const page = await opened(t, { fragment: "width=1024&height=1024&steps=50" });
  await withPhoto(page);
  await page.fill("#prompt", "make it blue");
  const answers = [];
  page.on("response", async (response) => response.url().includes("/status/") && answers.push((await response.json()).status));
  await page.click("#go");
  await page.locator("#busy-text", { hasText: "Step" }).waitFor();

  await page.click("#cancel");

  await page.locator("#busy").waitFor({ state: "hidden" });
  assert.deepEqual(answers, ["CANCELLED"]);
  assert.equal(await page.locator("#live").textContent(), "The edit is cancelled.");
  assert.ok(await page.locator("#before").isVisible());
  assert.ok(await page.locator("#go-error").isHidden());
  assert.equal(await page.locator("#go").textContent(), "Edit the photo");
});

test("an error stands at the field that it names, and goes when the field changes", async (t) => {
  const page = await opened(t, { fragment: "steps=5&output_quality=900" });
  await withPhoto(page);
  await page.fill("#prompt", "make it blue");

  await page.click("#go");

  const error = page.locator("#steps-error");
  await error.waitFor();
  assert.match(await error.textContent(), /^steps is 5, expected /);
  assert.match(await page.locator("#output_quality-error").textContent(), /^output_quality is 900, expected /);
  assert.ok(await page.locator("#output_quality-error").isVisible());
  assert.equal(await focused(page), "steps");
  assert.equal(await page.locator("#steps").getAttribute("aria-invalid"), "true");
  assert.ok(await page.locator("#go-error").isHidden());
  await page.fill("#steps", "8");
  assert.ok(await error.isHidden());
});

test("what is typed and is no number reaches the server, which names the field", async (t) => {
  const page = await opened(t);
  await withPhoto(page);
  await page.fill("#prompt", "make it blue");
  await page.fill("#seed", "many");

  await page.click("#go");

  await page.locator("#seed-error", { hasText: "seed is 'many', expected" }).waitFor();
});

test("an edit without a photo or a prompt says so where it is missing", async (t) => {
  const page = await opened(t);
  await page.click("#go");
  await page.locator("#image-error", { hasText: "Choose a photo" }).waitFor();
  await withPhoto(page);
  assert.ok(await page.locator("#image-error").isHidden());
  await page.click("#go");
  await page.locator("#prompt-error", { hasText: "prompt is empty" }).waitFor();
});

test("a file that is no picture is an error at the photo", async (t) => {
  const page = await opened(t);
  const file = join(folder, "notes.txt");
  await writeFile(file, "no picture");
  await page.setInputFiles("#file", file);
  await page.locator("#image-error", { hasText: "notes.txt is not a picture" }).waitFor();
});

test("a phone of 360 pixels never scrolls sideways", async (t) => {
  const page = await opened(t, { fragment: SMALL, viewport: { width: 360, height: 740 }, isMobile: true, hasTouch: true });
  const widths = () => page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);

  assert.deepEqual(await widths(), [360, 360]);
  assert.ok(await page.getByRole("button", { name: "Take a photo" }).isVisible());
  await edited(page);
  await unfold(page);
  assert.deepEqual(await widths(), [360, 360]);
});

test("the keyboard alone leads from the photo to the downloaded result", async (t) => {
  const page = await opened(t, { fragment: SMALL });
  await page.locator("#examples button").first().waitFor();

  await tabTo(page, "Choose a photo");
  const [chooser] = await Promise.all([page.waitForEvent("filechooser"), page.keyboard.press("Enter")]);
  await chooser.setFiles(PHOTO);
  await page.waitForFunction(() => document.activeElement.id === "prompt");
  await page.keyboard.type("make it sepia");
  await page.keyboard.press("Control+Enter");
  await page.locator("#actions").waitFor();
  await page.waitForFunction(() => document.activeElement.id === "range");
  await page.keyboard.press("ArrowLeft");
  assert.equal(await value(page, "range"), "48");
  await tabTo(page, "download");
  const [download] = await Promise.all([page.waitForEvent("download"), page.keyboard.press("Enter")]);

  assert.equal(download.suggestedFilename(), "chelsea-make-it-sepia-42.png");
});

for (const colorScheme of ["light", "dark"]) {
  test(`axe finds nothing serious in ${colorScheme}: empty, with errors, and with a result`, async (t) => {
    const page = await opened(t, { colorScheme, fragment: SMALL });
    await page.locator("#examples button").first().waitFor();
    await page.evaluate(AXE);
    const serious = async () => {
      const { violations } = await page.evaluate(() => window.axe.run());
      return violations.filter(({ impact }) => ["serious", "critical"].includes(impact)).map(({ id, nodes }) => [id, nodes.map((node) => node.html)]);
    };

    assert.deepEqual(await serious(), []);
    await withPhoto(page);
    await page.fill("#prompt", "make it blue");
    await page.fill("#steps", "5");
    await page.click("#go");
    await page.locator("#steps-error").waitFor();
    assert.deepEqual(await serious(), []);
    await page.fill("#steps", "8");
    await edited(page);
    await edited(page, "make it sepia");
    await unfold(page);
    assert.deepEqual(await serious(), []);
  });
}

test("the fragment brings the fields back, and holds neither the photo nor its name", async (t) => {
  const page = await opened(t, { fragment: "prompt=make+it+sepia&steps=20&seed=9223372036854775807&width=512&height=256&output_format=webp&num_images=2&other=1" });

  assert.equal(await value(page, "prompt"), "make it sepia");
  assert.deepEqual([await value(page, "steps"), await value(page, "seed")], ["20", "9223372036854775807"]);
  assert.deepEqual([await value(page, "width"), await value(page, "height")], ["512", "256"]);
  assert.ok(await page.locator("#size").isVisible());
  assert.equal(await value(page, "output_format"), "webp");
  assert.ok(await page.locator("[name=num_images][value='2']").isChecked());

  await withPhoto(page);
  await page.fill("#prompt", "make it blue & bright");
  const address = await page.evaluate(() => location.href);
  const kept = new URLSearchParams(new URL(address).hash.slice(1));
  assert.equal(kept.get("prompt"), "make it blue & bright");
  assert.equal(kept.get("seed"), "9223372036854775807");
  assert.doesNotMatch(address, /chelsea|other/);
  await page.reload();
  assert.equal(await value(page, "prompt"), "make it blue & bright");
});

test("a seed of 63 bits goes out and comes back whole", async (t) => {
  const page = await opened(t, { fragment: "width=256&height=256&seed=9223372036854775807" });
  await edited(page);
  assert.ok((await page.locator("#facts").textContent()).includes("9223372036854775807"));
  await page.fill("#seed", "");
  await page.click("#keep-seed");
  assert.equal(await value(page, "seed"), "9223372036854775807");
});

test("the key is asked for where the server answers 401, and is kept nowhere but in the tab", async (t) => {
  const page = await opened(t, { address: LOCKED, fragment: SMALL });
  await page.locator("#ask").waitFor();
  await page.fill("#key", "wrong");
  await page.keyboard.press("Enter");
  await page.locator("#key-error", { hasText: "does not take this key" }).waitFor();

  await page.fill("#key", KEY);
  await page.keyboard.press("Enter");

  await page.locator("#examples button").first().waitFor();
  await edited(page);
  await unfold(page);
  const stored = await page.evaluate(() => JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie, location.href, document.documentElement.outerHTML]));
  assert.ok(!stored.includes(KEY));
  assert.match(await page.locator("#snippet").textContent(), /\$API_KEY/);
  await page.reload();
  await page.locator("#ask").waitFor();
});

test("without the key the page says that the server asks for one, and asks again", async (t) => {
  const page = await opened(t, { address: LOCKED });
  await page.locator("#ask").waitFor();
  await page.keyboard.press("Escape");
  await page.locator("#notice", { hasText: "asks for a key" }).waitFor();
  await page.click("#notice-key");
  await page.locator("#ask").waitFor();
});

test("the result becomes the next photo, byte for byte, and the history leads back", async (t) => {
  const page = await opened(t, { fragment: SMALL });
  const first = await edited(page);

  await page.click("#next");
  await page.locator("#caption", { hasText: "From edit 1" }).waitFor();
  const [sent] = await Promise.all([page.waitForRequest((request) => request.url().endsWith("/run")), edited(page, "make it sepia")]);

  assert.equal(sent.postDataJSON().input.image, first.output.image);
  await page.getByRole("button", { name: "Edit 1: make it blue" }).click();
  assert.match(await page.locator("#caption").textContent(), /^Edit 1/);
  assert.equal(await page.locator("#download").getAttribute("download"), "chelsea-make-it-blue-42.png");
  await page.click("#restore");
  assert.equal(await value(page, "prompt"), "make it blue");
});

test("several pictures are shown one at a time, each with its own seed", async (t) => {
  const page = await opened(t, { fragment: `${SMALL}&num_images=2` });
  await edited(page);
  await page.getByRole("button", { name: "Picture 2" }).click();
  assert.equal(await page.locator("#download").getAttribute("download"), "chelsea-make-it-blue-43.png");
});

test("the reply's receipt, times and warnings are shown", async (t) => {
  const page = await opened(t, { fragment: "width=260&height=256&steps=4&seed=1" });
  const { output } = await edited(page);
  await unfold(page);

  assert.ok(output.warnings.length > 0);
  assert.deepEqual(await page.locator("#warnings li").allTextContents(), output.warnings);
  const receipt = await page.locator("#ran").textContent();
  for (const name of ["checkpoint", "sha256", "backend"]) assert.ok(receipt.includes(output.model_config[name]));
  assert.ok((await page.locator("#times").textContent()).includes("the steps"));
});

test("a photo may be dropped and pasted, and the example photo needs none", async (t) => {
  const page = await opened(t);
  const carried = (kind, target) => page.evaluate(async ([kind, target]) => {
    const canvas = Object.assign(document.createElement("canvas"), { width: 32, height: 16 });
    const blob = await new Promise((done) => canvas.toBlob(done));
    const carrier = new DataTransfer();
    carrier.items.add(new File([blob], `${kind}.png`, { type: "image/png" }));
    const event = kind === "paste" ? new ClipboardEvent(kind, { clipboardData: carrier, bubbles: true }) : new DragEvent(kind, { dataTransfer: carrier, bubbles: true, cancelable: true });
    document.querySelector(target).dispatchEvent(event);
  }, [kind, target]);

  await carried("drop", "#drop");
  await page.locator("#caption", { hasText: "drop.png" }).waitFor();
  await carried("paste", "#prompt");
  await page.locator("#caption", { hasText: "paste.png 32 × 16" }).waitFor();
  await page.reload();
  await page.click("#example");
  await page.locator("#caption", { hasText: "cat.webp" }).waitFor();
});

test("a photo above the limits is made smaller here, and the page says so", async (t) => {
  const page = await opened(t, { fragment: SMALL });
  const file = join(folder, "large.bmp");
  await writeFile(file, bitmap(3000, 2400));

  await withPhoto(page, file);

  assert.match(await page.locator("#caption").textContent(), /Made smaller here, from 3000 × 2400 and 21.6 MB/);
  const [sent] = await Promise.all([page.waitForRequest((request) => request.url().endsWith("/run")), edited(page)]);
  const bytes = Buffer.from(sent.postDataJSON().input.image, "base64");
  assert.equal(bytes.subarray(0, 3).toString("hex"), "ffd8ff");
  assert.ok(bytes.length < 20_000_000);
});

/** A black picture of 24 bits a pixel, as a file. */
function bitmap(width, height) {
  const file = Buffer.alloc(54 + width * height * 3);
  file.write("BM");
  file.writeUInt32LE(file.length, 2);
  file.writeUInt32LE(54, 10);
  file.writeUInt32LE(40, 14);
  file.writeInt32LE(width, 18);
  file.writeInt32LE(height, 22);
  file.writeUInt16LE(1, 26);
  file.writeUInt16LE(24, 28);
  return file;
}

test("a full server is asked again after the time that it names, and the wait can be cancelled", async (t) => {
  const page = await opened(t, { fragment: SMALL });
  const refusals = [1, 600];
  await page.route("**/run", (route) => {
    const seconds = refusals.shift();
    if (seconds === undefined) return route.continue();
    return route.fulfill({ status: 429, headers: { "Retry-After": String(seconds) }, json: { error: "overloaded: all places are taken" } });
  });
  await withPhoto(page);
  await page.fill("#prompt", "make it blue");
  await page.click("#go");
  await page.locator("#busy-text", { hasText: "Trying again in 600 s" }).waitFor();
  await page.click("#cancel");
  await page.locator("#busy").waitFor({ state: "hidden" });

  await edited(page);
});

const STATES = [
  [{ state: "loading", base_model: "demo", backend: null, device: null, dtype: null, supported_steps: null }, "The model is loading"],
  [{ state: "failed", base_model: null, error: "model_unavailable: weights are missing" }, "weights are missing"],
  [{ state: "ready", base_model: "demo" }, "A demo model serves"],
  [{ state: "ready", base_model: "tiny" }, "A tiny model"],
];
for (const [state, words] of STATES) {
  test(`the page says so where the server's state is ${state.state} and its model ${state.base_model}`, async (t) => {
    const context = await browser.newContext();
    t.after(() => context.close());
    const page = await context.newPage();
    page.setDefaultTimeout(PATIENCE);
    await page.route("**/model-info", async (route) => {
      const answer = await route.fetch();
      await route.fulfill({ json: { ...(await answer.json()), ...state } });
    });
    await page.goto(BASE);
    await page.locator("#notice", { hasText: words }).waitFor();
  });
}

for (const [language, suffix, program] of [["JavaScript", "mjs", process.execPath], ["Python", "py", process.env.PYTHON ?? "python3"]]) {
  test(`the request as ${language} runs, and gives the same picture`, async (t) => {
    const page = await opened(t, { fragment: SMALL });
    const { output } = await edited(page, "make it 'blue', \"please\"");
    await unfold(page);
    await page.getByRole("tab", { name: language }).click();
    const place = await mkdtemp(join(folder, "code-"));
    await copyFile(PHOTO, join(place, "chelsea.png"));
    await writeFile(join(place, `request.${suffix}`), await page.locator("#snippet").textContent());

    await promisify(execFile)(program, [`request.${suffix}`], { cwd: place });

    assert.equal((await readFile(join(place, "result.png"))).toString("base64"), output.image);
  });
}

test("the theme follows the system until the button says otherwise, and a reload keeps it", async (t) => {
  const page = await opened(t, { colorScheme: "dark" });
  const scheme = () => page.evaluate(() => getComputedStyle(document.documentElement).colorScheme);
  assert.equal(await scheme(), "light dark");
  await page.click("#theme");
  assert.equal(await scheme(), "light");
  await page.reload();
  assert.equal(await scheme(), "light");
});
