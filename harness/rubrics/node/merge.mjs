// Put changed code into a source file the way a person pastes it: whole functions and declarations, by name.
import ts from "typescript";

// Returns {text, replaced, added, whole, problem}. `blocks` are the answer's fenced blocks. A block that declares the
// module's own exported entry `entry` is taken as the whole file. `problem` says why nothing could be put in.
export function merge(source, blocks, entry, name = "answer.tsx") {
  const result = { text: source, replaced: [], added: [], whole: false, problem: "" };
  for (const block of blocks) {
    const file = ts.createSourceFile(name, block, ts.ScriptTarget.ES2022, true);
    if (file.parseDiagnostics.length > 0) {
      result.problem ||= `not complete code: ${ts.flattenDiagnosticMessageText(file.parseDiagnostics[0].messageText, " ")}`;
      continue;
    }
    if (entry && declares(file, entry)) {
      result.whole = true;
      result.text = block;
      continue;
    }
    pasteInto(result, file, name);
  }
  if (!result.whole && result.replaced.length === 0 && result.added.length === 0) result.problem ||= "no declaration to put in";
  else result.problem = result.whole || result.replaced.length > 0 ? "" : result.problem || "nothing replaced";
  return result;
}

// Route the statements of `blocks` to the files whose declarations they replace; {file: code}. A new declaration goes
// where the one before it went; an import goes to the file that already imports from there, or with its block.
export function route(files, blocks, name = "answer.tsx") {
  const sources = Object.entries(files).map(([path, text]) => [path, ts.createSourceFile(name, text, ts.ScriptTarget.ES2022, true)]);
  const routed = Object.fromEntries(sources.map(([path]) => [path, ""]));
  for (const block of blocks) {
    const file = ts.createSourceFile(name, block, ts.ScriptTarget.ES2022, true);
    const homes = file.statements.map((one) => sources.find(([, source]) => namesOf(one).some((own) => declares(source, own)))?.[0]);
    let current = homes.find(Boolean) ?? sources[0][0];
    file.statements.forEach((statement, number) => {
      const from = ts.isImportDeclaration(statement) ? statement.moduleSpecifier.text : null;
      const importer = from && sources.find(([, source]) => source.statements.some((one) => ts.isImportDeclaration(one) && one.moduleSpecifier.text === from))?.[0];
      current = homes[number] ?? current;
      routed[importer ?? current] += `${statement.getText()}\n\n`;
    });
  }
  return routed;
}

// Names of the declarations at the top level of `text`.
export function topLevelNames(text, name = "answer.tsx") {
  return ts.createSourceFile(name, text, ts.ScriptTarget.ES2022, true).statements.flatMap(namesOf);
}

// Lines of `after` that `before` does not have, as many times as it lacks them.
export function countChangedLines(before, after) {
  const left = new Map();
  for (const line of before.split("\n")) left.set(line.trim(), (left.get(line.trim()) ?? 0) + 1);
  let changed = 0;
  for (const line of after.split("\n")) {
    const key = line.trim();
    if (!key) continue;
    if ((left.get(key) ?? 0) > 0) left.set(key, left.get(key) - 1);
    else changed += 1;
  }
  return changed;
}

function pasteInto(result, file, name) {
  const fresh = [];
  for (const statement of file.statements) {
    const names = namesOf(statement);
    const target = names.length > 0 && find(result.text, names, name);
    if (ts.isImportDeclaration(statement)) addImport(result, statement, name);
    else if (target) {
      result.text = result.text.slice(0, target.start) + statement.getText() + result.text.slice(target.end);
      result.replaced.push(...names);
    } else if (names.length > 0) fresh.push({ names, text: statement.getText() });
  }
  for (const one of fresh) {
    const place = placeFor(result, one.text, name);
    result.text = result.text.slice(0, place) + one.text + "\n\n" + result.text.slice(place);
    result.added.push(...one.names);
  }
}

// Exported declarations go before the first export of the module, others before the first function that was replaced.
function placeFor(result, text, name) {
  const target = !/^export\b/.test(text) && result.replaced.length > 0 && find(result.text, result.replaced.slice(0, 1), name);
  if (target) return target.start;
  const file = ts.createSourceFile(name, result.text, ts.ScriptTarget.ES2022, true);
  const first = file.statements.find((one) => !ts.isImportDeclaration(one));
  return first ? first.getStart() : result.text.length;
}

function addImport(result, statement, name) {
  const from = statement.moduleSpecifier.text;
  const file = ts.createSourceFile(name, result.text, ts.ScriptTarget.ES2022, true);
  const old = file.statements.find((one) => ts.isImportDeclaration(one) && one.moduleSpecifier.text === from);
  if (!old) {
    result.text = `${statement.getText()}\n${result.text}`;
    result.added.push(`import ${from}`);
    return;
  }
  const elements = (one) => one.importClause?.namedBindings?.elements?.map((element) => element.getText()) ?? [];
  if (elements(statement).length === 0 || elements(old).length === 0) return;
  const bindings = old.importClause.namedBindings;
  const all = [...new Set([...elements(old), ...elements(statement)])];
  result.text = `${result.text.slice(0, bindings.getStart())}{ ${all.join(", ")} }${result.text.slice(bindings.getEnd())}`;
}

function namesOf(statement) {
  if (statement.name) return [statement.name.getText()];
  if (ts.isVariableStatement(statement)) return statement.declarationList.declarations.map((one) => one.name.getText());
  return [];
}

function declares(file, entry) {
  return file.statements.some((one) => namesOf(one).includes(entry));
}

// The declaration of the first of `names` in `text`, however deep: its exact range without leading comments.
function find(text, names, name) {
  const file = ts.createSourceFile(name, text, ts.ScriptTarget.ES2022, true);
  let found = null;
  const visit = (node) => {
    if (found) return;
    const statement = ts.isFunctionDeclaration(node) || ts.isVariableStatement(node) || ts.isInterfaceDeclaration(node) || ts.isTypeAliasDeclaration(node);
    if (statement && namesOf(node).some((one) => names.includes(one))) found = { start: node.getStart(), end: node.getEnd() };
    else ts.forEachChild(node, visit);
  };
  visit(file);
  return found;
}
