// A client on grpc-js of the contract `interop.v1.Peer`: see tests/peers/contract.rs.
//
// node peer_client.mjs ADDRESS...: does what each line of its standard input asks, says in one line
// what became of it, and ends with its input.

import { createInterface } from "node:readline";
import { credentials, makeGenericClientConstructor } from "@grpc/grpc-js";
import { PEER } from "./peer.mjs";

// Put has no policy: it must not be done twice.
const serviceConfig = {
  loadBalancingConfig: [{ round_robin: {} }],
  methodConfig: [
    {
      name: [{ service: "interop.v1.Peer", method: "Get" }],
      retryPolicy: {
        maxAttempts: 4,
        initialBackoff: "0.01s",
        maxBackoff: "0.02s",
        backoffMultiplier: 1,
        retryableStatusCodes: ["UNAVAILABLE"],
      },
    },
  ],
};
const Client = makeGenericClientConstructor(PEER, "Peer");
const target = `ipv4:${process.argv.slice(2).join(",")}`;
const client = new Client(target, credentials.createInsecure(), {
  "grpc.service_config": JSON.stringify(serviceConfig),
});

function call({ method, ask, timeout_ms, cancel_ms }) {
  const begun = performance.now();
  const options = timeout_ms ? { deadline: Date.now() + timeout_ms } : {};
  return new Promise((resolve) => {
    const call = client[method.toLowerCase()](JSON.stringify(ask), options, (error, answer) => {
      const took_ms = performance.now() - begun;
      if (error) resolve({ code: error.code, message: error.details, took_ms });
      else resolve({ answer: JSON.parse(answer), took_ms });
    });
    if (cancel_ms) setTimeout(() => call.cancel(), cancel_ms);
  });
}

/** Calls that go on until they are stopped. */
class Load {
  answered = {};
  failures = [];
  ended = false;

  constructor(order) {
    this.tasks = Array.from({ length: order.tasks }, () => this.run(order));
  }

  async run(order) {
    while (!this.ended) {
      const { answer, code, message } = await call(order);
      if (answer) this.answered[answer.name] = (this.answered[answer.name] ?? 0) + 1;
      else this.failures.push(`${code}: ${message}`);
    }
  }

  report() {
    return { answered: this.answered, failures: this.failures.slice(0, 10) };
  }
}

let load;
for await (const line of createInterface({ input: process.stdin })) {
  const order = JSON.parse(line);
  let result;
  if (order.do === "call") {
    result = await call(order);
  } else if (order.do === "load") {
    load = new Load(order);
    result = load.report();
  } else if (order.do === "look") {
    result = load.report();
  } else if (order.do === "stop") {
    load.ended = true;
    await Promise.all(load.tasks);
    result = load.report();
  }
  console.log(JSON.stringify(result));
}
process.exit(0);
