// A server on grpc-js of the contract `interop.v1.Peer`: see tests/peers/contract.rs.
//
// node peer_server.mjs OPTIONS: prints its port, leaves in order when it reads "stop", and ends at once
// when its standard input ends.

import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { Metadata, Server, ServerCredentials, status } from "@grpc/grpc-js";
import { PEER } from "./peer.mjs";

const options = JSON.parse(process.argv[2]);
const seen = new Map();

function of(id = "") {
  if (!seen.has(id)) seen.set(id, { at: [], cancelled: 0 });
  return seen.get(id);
}

/** Waits as long as it is asked to, or until nobody waits for the answer. */
async function wait(call, ask) {
  const gone = new AbortController();
  call.on("cancelled", () => gone.abort());
  try {
    await sleep(ask.waits_ms, undefined, { signal: gone.signal });
  } catch {
    of(ask.id).cancelled += 1;
  }
}

async function answer(call, callback) {
  const ask = JSON.parse(call.request);
  const attempt = of(ask.id).at.push(performance.now());
  const deadline = call.getDeadline();
  const remaining = deadline === Infinity ? null : deadline - Date.now();
  if (ask.waits_ms) await wait(call, ask);
  if (attempt <= (ask.fails ?? 0)) {
    const metadata = new Metadata();
    if (ask.pushback != null) metadata.set("grpc-retry-pushback-ms", ask.pushback);
    callback({ code: status.UNAVAILABLE, details: "not now", metadata });
    return;
  }
  const [previous] = call.metadata.get("grpc-previous-rpc-attempts");
  callback(
    null,
    JSON.stringify({
      name: options.name,
      attempt,
      previous: Number(previous ?? 0),
      remaining_ms: remaining,
      padding: "x".repeat(ask.bytes ?? 0),
    }),
  );
}

async function count(call) {
  const ask = JSON.parse(call.request);
  of(ask.id).at.push(performance.now());
  for (let number = 0; number < (ask.counts ?? 0); number++) {
    call.write(String(number).padStart(ask.bytes ?? 0));
  }
  if (ask.waits_ms) await wait(call, ask);
  call.end();
}

const settings = {};
if ("age_ms" in options) {
  settings["grpc.max_connection_age_ms"] = options.age_ms;
  settings["grpc.max_connection_age_grace_ms"] = 10_000;
}
if (options.compresses) settings["grpc.default_compression_algorithm"] = 2;
const server = new Server(settings);
const look = (call, callback) => callback(null, JSON.stringify(of(call.request)));
server.addService(PEER, { get: answer, put: answer, look, count });
server.bindAsync("127.0.0.1:0", ServerCredentials.createInsecure(), (error, port) => {
  if (error) throw error;
  console.log(port);
});
const lines = createInterface({ input: process.stdin });
lines.on("line", (line) => {
  if (line.trim() !== "stop") return;
  server.tryShutdown(() => {
    console.log("stopped");
    process.exit(0);
  });
});
lines.on("close", () => process.exit(0));
