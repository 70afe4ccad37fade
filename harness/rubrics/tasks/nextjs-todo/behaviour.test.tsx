import { sql } from "drizzle-orm";
import { getTableConfig, PgDialect } from "drizzle-orm/pg-core";
import { renderToStaticMarkup } from "react-dom/server";
import { beforeEach, expect, test } from "vitest";
import { client, db } from "./client";
import { addTodo, listTodos, setDone, todos } from "./db";
import Page from "./page";

const table = getTableConfig(todos);
const times = table.columns.filter((column) => /timestamp|date/.test(column.getSQLType()) || /creat/i.test(column.name));

function define(column: (typeof table.columns)[number]): string {
  const value = column.default;
  const text = value === undefined ? "" : typeof value === "object" && value !== null && "queryChunks" in value ? new PgDialect().sqlToQuery(value as never).sql : `'${String(value)}'`;
  return `"${column.name}" ${column.getSQLType()}${column.primary ? " primary key" : ""}${text ? ` default ${text}` : ""}`;
}

beforeEach(async () => {
  await client.exec(`drop table if exists todos; create table todos (${table.columns.map(define).join(", ")})`);
});

const isNow = (value: unknown) => Math.abs(new Date(value as string).getTime() - Date.now()) < 120_000;
const render = async () => renderToStaticMarkup(await Page());
const textOf = (html: string) => html.replace(/<script[\s\S]*?<\/script>/g, "").replace(/<[^>]*>/g, " ");
const setTime = (value: string | null) => client.query(`update todos set "${times[0]!.name}" = $1`, [value]);

test("stores", async () => {
  await addTodo("  water the plants ");
  const row = (await client.query<Record<string, unknown>>("select * from todos")).rows[0]!;
  expect(row.title).toBe("water the plants");
  expect(isNow(row[times[0]!.name])).toBe(true);
});

test("lists", async () => {
  await addTodo("one");
  const [todo] = await listTodos();
  expect(todo).toMatchObject({ title: "one", done: false });
  expect(Object.values(todo!).some((value) => (value instanceof Date || typeof value === "string") && isNow(value))).toBe(true);
});

test("shows", async () => {
  await addTodo("pay rent");
  await setTime("2024-03-09T10:20:30Z");
  const text = textOf(await render());
  expect(text).toContain("pay rent");
  expect(text).toMatch(/2024|\b0?[39][/.]0?[39][/.]24\b|\b(days?|months?|years?) ago\b/);
});

test("iso", async () => {
  await addTodo("pay rent");
  await setTime("2024-03-09T10:20:30Z");
  expect(textOf(await render())).not.toContain("2024-03-09T10:20:30");
});

test("no time", async () => {
  await addTodo("old one");
  await setTime(null);
  const text = textOf(await render());
  expect(text).toContain("old one");
  expect(text).not.toMatch(/Invalid|1970|null|undefined|NaN/);
});

test("order", async () => {
  for (const title of ["first", "second", "third"]) await addTodo(title);
  await setDone(1, true);
  expect((await listTodos()).map((todo) => todo.title)).toEqual(["second", "third", "first"]);
});

test("database default", async () => {
  await db.execute(sql`insert into todos (title) values ('by hand')`);
  const row = (await client.query<Record<string, unknown>>("select * from todos")).rows[0]!;
  expect(isNow(row[times[0]!.name])).toBe(true);
});
