// Drives the vendor's JavaScript client and prints what it handed over, as JSON.
// node driver.mjs '{"rest": url, "ws": url, "key": key, "pagination": bool, "calls": [[method, parameters]]}'
// node driver.mjs '{"rest": url, "ws": url, "key": key, "topics": [topic], "count": events}'

import { restClient, websocketClient } from "@massive.com/client-js";

const WITHIN = 60_000; // ms for anything

const task = JSON.parse(process.argv[2]);
setTimeout(() => finish({ late: true }), WITHIN).unref();
if (task.calls) {
  const client = restClient(task.key, task.rest, { pagination: task.pagination });
  const answers = [];
  for (const [method, parameters] of task.calls) answers.push(await answer(client, method, parameters));
  finish(answers);
} else {
  listen(websocketClient(task.key, task.ws).stocks());
}

async function answer(client, method, parameters) {
  try {
    return { body: await client[method](...(parameters ? [parameters] : [])) };
  } catch (error) {
    if (!error.response) throw error;
    return { status: error.response.status, body: error.response.data };
  }
}

function listen(socket) {
  const messages = [];
  let events = 0;
  socket.onmessage = ({ data }) => {
    const message = JSON.parse(data);
    messages.push(message);
    events += message.filter((event) => event.ev !== "status").length;
    if (message[0].status === "auth_success")
      socket.send(JSON.stringify({ action: "subscribe", params: task.topics.join(",") }));
    if (task.count && events >= task.count) socket.close();
  };
  socket.onclose = ({ code }) => finish({ messages, code });
}

function finish(result) {
  process.stdout.write(JSON.stringify(result), () => process.exit(0));
}
