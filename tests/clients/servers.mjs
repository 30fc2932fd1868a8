/** What the tests of clients are told: the address and the key of a server on a device that does what prompts say. */

import { fileURLToPath } from "node:url";

export const BASE = needed("LOCKED_URL");
export const KEY = needed("LOCKED_KEY");
export const PHOTO = fileURLToPath(new URL("../photos/chelsea.png", import.meta.url));

function needed(name) {
  if (!process.env[name]) throw new Error(`${name} is not set, expected the address of a server or its key`);
  return process.env[name];
}
