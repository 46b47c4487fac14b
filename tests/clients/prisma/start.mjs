// Prisma's client over node-postgres: what it sends when it starts, and for reads and writes of each shape.
import { createRequire } from "node:module";
import { PrismaPg } from "@prisma/adapter-pg";

// Without it Node prints the minified library.
process.once("uncaughtException", (error) => {
  console.error(error.message);
  process.exit(1);
});
const { PrismaClient } = createRequire(import.meta.url)("./client");
const { PGHOST, PGPORT, PGUSER, PGDATABASE } = process.env;
const adapter = new PrismaPg({ host: PGHOST, port: Number(PGPORT), user: PGUSER, database: PGDATABASE });
const prisma = new PrismaClient({ adapter });
await prisma.$connect();
await prisma.$queryRaw`SELECT 1`;
const made = await prisma.items.create({ data: { name: "a", doc: { k: [1] }, tags: ["x", "y"] } });
await prisma.items.findMany({ where: { tags: { has: "x" }, doc: { path: ["k"], equals: [1] } }, orderBy: { name: "asc" }, take: 3 });
await prisma.items.upsert({ where: { id: made.id }, update: { name: "b" }, create: { name: "c" } });
await prisma.items.createMany({ data: [{ name: "d" }, { name: "e" }], skipDuplicates: true });
await prisma.items.updateManyAndReturn({ where: { name: { startsWith: "d" } }, data: { tags: { push: "z" } } });
await prisma.items.aggregate({ _count: true, _max: { id: true } });
await prisma.items.groupBy({ by: ["name"], _count: { _all: true }, having: { name: { not: "q" } } });
await prisma.users.findMany({ include: { orders: { where: { total: { gt: 1 } } } }, where: { name: { contains: "x", mode: "insensitive" } } });
await prisma.users.findFirst({ where: { moods: { hasSome: ["ok"] }, orders: { none: { total: 3 } } }, select: { id: true, _count: { select: { orders: true } } } });
await prisma.users.findUnique({ where: { ssn: "1" } });
await prisma.$transaction(async (inside) => {
  await inside.users.create({ data: { name: "n", moods: ["sad"], orders: { create: { total: "1.5" } } } });
  await inside.items.deleteMany({ where: { id: { in: [made.id, 7] } } });
}, { isolationLevel: "Serializable" });
await prisma.$transaction([prisma.items.count(), prisma.orders.findMany({ cursor: { id: 1 }, skip: 1, take: 2 })]);
await prisma.$disconnect();
