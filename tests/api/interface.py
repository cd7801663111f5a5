"""The public interface as the compiler reads it: every public name of namespace pyarallel, with its signature and comment.

Not in it: namespace detail, what is private or protected, friends, bodies. Needs Debian's python3-clang-16 and clang-16.
"""
import dataclasses
import pathlib
import subprocess
import sys

import clang.cindex as clang

ROOT = pathlib.Path(__file__).resolve().parents[2]
INCLUDE = ROOT / "include"
HEADERS = ["pyarallel.hpp", *(f"pyarallel/{optional}.hpp" for optional in ("checkpoint", "mpi", "progress"))]
K = clang.CursorKind

SCOPES = {K.NAMESPACE, K.LINKAGE_SPEC, K.UNEXPOSED_DECL}
TYPES = {K.CLASS_DECL, K.STRUCT_DECL, K.UNION_DECL, K.CLASS_TEMPLATE, K.CLASS_TEMPLATE_PARTIAL_SPECIALIZATION}
MEMBERS = {K.FUNCTION_DECL, K.CXX_METHOD, K.CONVERSION_FUNCTION, K.DESTRUCTOR, K.FIELD_DECL, K.VAR_DECL, K.TYPEDEF_DECL,
           K.TYPE_ALIAS_DECL, K.TYPE_ALIAS_TEMPLATE_DECL, K.USING_DECLARATION}
PUBLIC = {clang.AccessSpecifier.PUBLIC, clang.AccessSpecifier.INVALID, clang.AccessSpecifier.NONE}
for unnamed in (279, 280, 281):  # expressions that the bindings of this version do not know
    clang.CursorKind(unnamed)
MEMBERS.add(clang.CursorKind(604))  # nor concepts


def output_of(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def builtin_headers():
    return output_of("clang++-16", "-print-resource-dir") + "/include"


def is_own(cursor):
    file = cursor.location.file
    return file is not None and INCLUDE in pathlib.Path(file.name).resolve().parents


def tokens_before_body(cursor):
    """The tokens of the declaration, without comments and without the body."""
    tokens = [t for t in cursor.get_tokens() if t.kind != clang.TokenKind.COMMENT]
    body = next((c for c in cursor.get_children() if c.kind == K.COMPOUND_STMT), None)
    if body is not None:
        start = body.extent.start.offset
        tokens = [t for t in tokens if t.extent.start.offset < start]
    return [t.spelling for t in tokens]


def without_initializers(tokens):
    """A constructor's tokens up to its member initializers."""
    depth = 0
    for i, token in enumerate(tokens):
        depth += {"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}.get(token, 0)
        if token == ":" and depth == 0 and i > 0 and "?" not in tokens[:i]:
            return tokens[:i]
    return tokens


def head_of_type(tokens):
    """A class's tokens up to its body."""
    depth = 0
    for i, token in enumerate(tokens):
        if token == "{" and depth == 0:
            return tokens[:i]
        depth += {"(": 1, ")": -1}.get(token, 0)
    return tokens


def spelled(tokens):
    text = ""
    for i, token in enumerate(tokens):
        before = tokens[i - 1] if i else ""
        tight = (
            not text
            or token in {",", ";", ")", "]", "::", ">", ">>", "...", "(", "["}
            or before in {"(", "[", "::", "<", "~", "!", "..."}
            or (token in {"&", "&&", "*", "<"})
            or (token == "." or before == ".")
        )
        text += token if tight else " " + token
    return text.rstrip("; ").replace("{ }", "{}")


@dataclasses.dataclass(frozen=True)
class Declaration:
    scope: str  # "pyarallel::MapResult::"
    text: str  # "std::size_t size() const noexcept"
    name: str
    header: str  # "pyarallel/result.hpp"
    comment: str  # "" where the declaration has none
    is_type: bool


def comment_of(cursor):
    lines = (cursor.raw_comment or "").splitlines()
    return "\n".join(line.strip().removeprefix("///").removeprefix("//<").removeprefix(" ") for line in lines)


def declaration(cursor, scope, tokens):
    header = pathlib.Path(cursor.location.file.name).resolve().relative_to(INCLUDE).as_posix()
    if header.startswith("pyarallel/detail/"):  # a public name that the others are made of
        header = HEADERS[0]
    return Declaration(scope, spelled(tokens), cursor.spelling, header, comment_of(cursor), cursor.kind in TYPES)


def declarations(cursor, scope):
    for child in cursor.get_children():
        if not is_own(child) or child.access_specifier not in PUBLIC:
            continue
        tokens = tokens_before_body(child)
        if child.kind == K.NAMESPACE:
            if child.spelling != "detail":
                yield from declarations(child, scope + child.spelling + "::" if child.spelling else scope)
        elif child.kind in TYPES:
            if child.is_definition():
                yield declaration(child, scope, head_of_type(tokens))
                yield from declarations(child, scope + child.spelling + "::")
        elif child.kind == K.UNEXPOSED_DECL and tokens[:1] == ["template"]:  # of a variable
            yield declaration(child, scope, tokens)
        elif child.kind in SCOPES:
            yield from declarations(child, scope)
        elif child.semantic_parent is None or child.semantic_parent != cursor:  # defined here, declared in its class
            continue
        elif child.kind in {K.CONSTRUCTOR, K.FUNCTION_TEMPLATE}:
            yield declaration(child, scope, without_initializers(tokens))
        elif child.kind in MEMBERS or (child.kind == K.ENUM_DECL and child.is_definition()):
            yield declaration(child, scope, tokens)


def interface():
    """All public declarations, each once: by scope, and in a scope in the order in which they are declared."""
    includes = "".join(f"#include <{header}>\n" for header in HEADERS)
    arguments = ["-std=c++20", f"-I{INCLUDE}", f"-isystem{builtin_headers()}",
                 *output_of("pkg-config", "--cflags", "mpi-cxx").split()]
    unit = clang.Index.create().parse("interface.cpp", args=arguments, unsaved_files=[("interface.cpp", includes)])
    errors = [d for d in unit.diagnostics if d.severity >= clang.Diagnostic.Error]
    if errors:
        sys.exit(f"{errors[0]}")
    spaces = [c for c in unit.cursor.get_children()
              if c.kind == K.NAMESPACE and c.spelling == "pyarallel" and is_own(c)]
    found = {}
    for space in spaces:
        for each in declarations(space, "pyarallel::"):
            found.setdefault((each.scope, each.text), each)
    return sorted(found.values(), key=lambda each: each.scope)
