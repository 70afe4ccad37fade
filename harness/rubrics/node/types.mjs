// What can be known of TypeScript code without running it.
import ts from "typescript";

const STRICT = {
  strict: true,
  noEmit: true,
  skipLibCheck: true,
  target: ts.ScriptTarget.ES2022,
  module: ts.ModuleKind.ESNext,
  moduleResolution: ts.ModuleResolutionKind.Bundler,
  lib: ["lib.es2022.d.ts", "lib.dom.d.ts", "lib.dom.iterable.d.ts"],
  types: [],
};

// Compile `files` as `tsc --strict --noEmit` does; returns the errors: {file, position, text}, text being one line.
export function compile(files, options = {}) {
  const program = ts.createProgram(files, { ...STRICT, ...options });
  return ts.getPreEmitDiagnostics(program).map((one) => {
    const file = one.file?.fileName.split("/").pop() ?? "";
    const where = one.file ? `${file}:${one.file.getLineAndCharacterOfPosition(one.start).line + 1}: ` : "";
    return { file, position: one.start ?? 0, text: `${where}TS${one.code} ${ts.flattenDiagnosticMessageText(one.messageText, " ")}` };
  });
}

// Count what circumvents the type checker, and how a program narrows: {assertions, nonNull, any, suppressions, in, predicates}.
export function census(code) {
  const file = ts.createSourceFile("census.ts", code, ts.ScriptTarget.ES2022, true);
  const counts = { assertions: 0, nonNull: 0, any: 0, suppressions: 0, in: 0, predicates: 0 };
  const visit = (node) => {
    if (ts.isAsExpression(node) && !isConst(node)) counts.assertions += 1;
    if (ts.isTypeAssertionExpression(node)) counts.assertions += 1;
    if (ts.isNonNullExpression(node)) counts.nonNull += 1;
    if (node.kind === ts.SyntaxKind.AnyKeyword) counts.any += 1;
    if (ts.isTypePredicateNode(node)) counts.predicates += 1;
    if (ts.isBinaryExpression(node) && node.operatorToken.kind === ts.SyntaxKind.InKeyword) counts.in += 1;
    ts.forEachChild(node, visit);
  };
  visit(file);
  counts.suppressions = (code.match(/\/[/*]\s*@ts-(ignore|expect-error|nocheck)/g) ?? []).length;
  return counts;
}

function isConst(node) {
  return ts.isTypeReferenceNode(node.type) && node.type.typeName.getText() === "const";
}

// Top-level functions of a module: {name, start, end, code}.
export function functionsOf(code) {
  const file = ts.createSourceFile("functions.ts", code, ts.ScriptTarget.ES2022, true);
  const found = [];
  const add = (name, node) => found.push({ name, start: node.getFullStart(), end: node.getEnd(), code: node.getText() });
  for (const statement of file.statements) {
    if (ts.isFunctionDeclaration(statement) && statement.name) add(statement.name.text, statement);
    if (ts.isVariableStatement(statement))
      for (const one of statement.declarationList.declarations)
        if (one.initializer && (ts.isArrowFunction(one.initializer) || ts.isFunctionExpression(one.initializer)))
          add(one.name.getText(), statement);
  }
  return found;
}

// JavaScript of TypeScript code, types taken out and nothing checked.
export function transpile(code) {
  return ts.transpileModule(code, { compilerOptions: { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext } }).outputText;
}
