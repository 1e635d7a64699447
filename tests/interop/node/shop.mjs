// Connect and gRPC-Web clients, a WebSocket, and gRPC from Node against the shop.
//
// node shop.mjs HOST:PORT DESCRIPTORS: messages are made from the contract's descriptor set.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createFileRegistry, fromBinary } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport } from "@connectrpc/connect-node";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import WebSocket from "ws";

const [address, descriptors] = process.argv.slice(2);
const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, readFileSync(descriptors)));
const service = (name) => registry.getService(name);
const ORDERS = service("shop.orders.v1.OrdersService");
const INVENTORY = service("shop.inventory.v1.InventoryService");
const NOTIFICATIONS = service("shop.notifications.v1.NotificationsService");
const baseUrl = `http://${address}`;

const transports = {
  "Connect, protobuf, HTTP/1.1": createConnectTransport({ baseUrl, httpVersion: "1.1", useBinaryFormat: true }),
  "Connect, JSON, HTTP/1.1": createConnectTransport({ baseUrl, httpVersion: "1.1", useBinaryFormat: false }),
  "Connect, JSON, HTTP/2": createConnectTransport({ baseUrl, httpVersion: "2", useBinaryFormat: false }),
  "Connect GET": createConnectTransport({ baseUrl, httpVersion: "1.1", useHttpGet: true }),
  // What a browser does: fetch, no trailers of HTTP.
  "gRPC-Web over fetch": createGrpcWebTransport({ baseUrl, useBinaryFormat: true }),
  "gRPC, HTTP/2": createGrpcTransport({ baseUrl, httpVersion: "2" }),
};

async function calls(name, transport) {
  const orders = createClient(ORDERS, transport);
  const inventory = createClient(INVENTORY, transport);
  const order = await orders.placeOrder(
    { customerId: "node", card: "tok_ok", lines: [{ sku: "pen-green", quantity: 3 }] },
    { headers: { "idempotency-key": `node ${name}` } },
  );
  assert.equal(order.totalCents, 597n);
  const seen = [];
  for await (const state of orders.watchOrder({ id: order.id }, { timeoutMs: 30_000 })) {
    seen.push(state.status);
  }
  assert.equal(seen.at(-1), 2, `${seen}`);
  const stock = await inventory.getStock({ sku: "pen-green" });
  assert.equal(stock.priceCents, 199n);
  await assert.rejects(inventory.getStock({ sku: "nothing" }), (error) => {
    assert.ok(error instanceof ConnectError);
    assert.equal(error.code, Code.NotFound);
    assert.ok(error.details.some((detail) => detail.type === "google.rpc.ErrorInfo"), "details");
    return true;
  });
  await assert.rejects(
    orders.placeOrder({ customerId: "node", card: "gold", lines: [] }),
    (error) => error.code === Code.InvalidArgument,
  );
}

async function streams(transport) {
  const inventory = createClient(INVENTORY, transport);
  const imported = await inventory.importStock(
    (async function* () {
      for (let number = 0; number < 10; number++) {
        yield { sku: `node-${number}`, quantity: BigInt(number), priceCents: 5n };
      }
    })(),
  );
  assert.equal(imported.count, 10);
  const chat = createClient(NOTIFICATIONS, transport).chat(
    (async function* () {
      yield { customerId: "nobody", text: "hello" };
      yield { customerId: "nobody", text: "good bye" };
    })(),
  );
  const answers = [];
  for await (const answer of chat) answers.push(answer.text);
  assert.equal(answers.length, 2);
}

function conversation(path, messages, wanted) {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(`ws://${address}${path}`);
    const seen = [];
    const over = setTimeout(() => reject(new Error(`no end; seen: ${seen}`)), 15_000);
    socket.on("open", () => messages.forEach((message) => socket.send(message)));
    socket.on("message", (data) => {
      seen.push(JSON.parse(data.toString()));
      if (seen.length === wanted) socket.close(1000);
    });
    socket.on("close", (code, reason) => {
      clearTimeout(over);
      resolve({ seen, code, reason: reason.toString() });
    });
    socket.on("error", reject);
  });
}

for (const [name, transport] of Object.entries(transports)) {
  await calls(name, transport);
  console.log("ok", name);
}
await streams(createGrpcTransport({ baseUrl, httpVersion: "2" }));
await streams(createConnectTransport({ baseUrl, httpVersion: "2" }));
console.log("ok streams in both directions");
const { seen } = await conversation(
  "/v1/customers/ws/chat",
  [JSON.stringify({ text: "hello over WebSocket" })],
  1,
);
assert.equal(seen[0].customerId, "ws");
assert.match(seen[0].text, /hello over WebSocket/);
console.log("ok WebSocket");
process.exit(0);
