// node-postgres: simple and extended queries, named statements, a pool, transactions.
import pg from "pg";

const masked = process.env.MASKED === "1", gated = process.env.GATED === "1";
let checks = 0;
function check(what, condition) {
  checks += 1;
  if (!condition) { console.error(`node-postgres: ${what}`); process.exit(1); }
}
const ssn = (plain) => (masked ? "*".repeat(plain.length - 4) + plain.slice(-4) : plain);

const pool = new pg.Pool({ max: 3 });
const rows = await Promise.all([1, 2, 3].map((id) => pool.query("SELECT name, ssn FROM app.people WHERE id = $1", [id])));
check("pool", rows.map((r) => r.rows[0].ssn).join() === ["531-22-8841", "212-09-9923", "402-77-1350"].map(ssn).join());
const client = await pool.connect();
for (let round = 0; round < 3; round++) {
  const named = await client.query({ name: "by-id", text: "SELECT id, ssn FROM app.people WHERE id = $1", values: [3] });
  check(`named statement, round ${round}`, named.rows[0].ssn === ssn("402-77-1350"));
}
const binary = await client.query({ text: "SELECT id FROM app.people WHERE id = $1", values: [3], binary: true });
check("binary result", binary.rows[0].id === 3);
const several = await client.query("SELECT 1 AS a; SELECT name FROM app.people WHERE id = 1");
check("two statements in one string", several[0].rows[0].a === 1 && several[1].rows[0].name === "Ada");
await client.query("BEGIN");
const inserted = await client.query(
  "INSERT INTO app.items (id, big, price, label, active, doc, tags) VALUES ($1,$2,$3,$4,$5,$6,$7) RETURNING *",
  [1, "1099511627776", "12.50", "text", true, { a: 1 }, ["x", "y"]]);
check("types", inserted.rows[0].big === "1099511627776" && inserted.rows[0].doc.a === 1 && inserted.rows[0].tags[1] === "y");
await client.query("ROLLBACK");
check("rolled back", (await client.query("SELECT count(*)::int AS n FROM app.items")).rows[0].n === 0);
check("many rows", (await client.query("SELECT n, label FROM app.numbers")).rows.length === 5000);
if (gated) {
  for (const values of [undefined, []]) {
    const error = await client.query("DROP TABLE app.items", values).then(() => null, (e) => e);
    check("the drop is refused", error && error.code === "42501" && error.message.includes("Sidegate refused"));
    check("the connection goes on", (await client.query("SELECT 1 AS one")).rows[0].one === 1);
  }
  await client.query("BEGIN");
  await client.query("INSERT INTO app.items (id) VALUES (900)");
  const refused = await client.query("DELETE FROM app.people WHERE true").then(() => null, (e) => e);
  check("refused inside a transaction", refused && refused.code === "42501");
  const failed = await client.query("SELECT 1").then(() => null, (e) => e);
  check("the transaction failed", failed && failed.code === "25P02");
  await client.query("COMMIT");
  check("nothing was kept", (await client.query("SELECT count(*)::int AS n FROM app.items")).rows[0].n === 0);
}
client.release();
await pool.end();
console.log(`ok node-postgres ${checks}`);
