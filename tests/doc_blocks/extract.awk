# Turns the ```cpp blocks of Markdown pages into C++ programs, and names them in blocks.cmake.
#
#   awk -v root=FOLDER_OF_PAGES -v out=OUTPUT_FOLDER -f extract.awk PAGE...
#
# A block with `int main` is a program, compiled as it is. Any other block is the body of a function, below
# prelude.hpp and its own #include lines. All such blocks of a page share one program, which saves most of
# the compile time; each has a namespace of its own, and the program runs the block whose line it is given.
# Words after ```cpp change that:
#   no-run           is compiled only
#   no-compile       is skipped
#   fragment-decls   holds declarations at namespace scope: a program with an empty main
# The compiler's messages name page and line, by #line.

FNR == 1 {
  finish_page()
  page = program = FILENAME
  gsub(/[^A-Za-z0-9]/, "_", program)
}

/^ *```/ && in_block {
  in_block = 0
  if (is_cpp) finish_block()
  next
}

/^ *```/ {
  in_block = 1
  is_cpp = /^ *```cpp( |$)/
  words = $0 " "
  line = FNR + 1
  includes = code = body = ""
  next
}

in_block {
  code = code $0 "\n"
  if (/^ *#include/) {
    includes = includes place(FNR) $0 "\n"
    body = body "\n"
  } else {
    body = body $0 "\n"
  }
}

END { finish_page() }

function place(number) { return "#line " number " \"" root "/" page "\"\n" }

function finish_block(  name) {
  if (words ~ / no-compile /) return
  name = "block_" line
  if (words ~ / fragment-decls /) {
    write(program "_" line, "#include \"prelude.hpp\"\n" includes place(line) body "int main() {}\n")
    return
  }
  if (code ~ /int main\(/) {
    write(program "_" line, place(line) code)
    if (words !~ / no-run /) tests = tests "doc_test(" page ":" line " " program "_" line ")\n"
    return
  }
  page_includes = page_includes includes
  blocks = blocks "namespace " name " {\nint run() {\n" place(line) body "return 0;\n}\n}\n"
  if (words ~ / no-run /) return
  calls = calls "  if (line == " line ") return " name "::run();\n"
  tests = tests "doc_test(" page ":" line " " program " " line ")\n"
}

function finish_page() {
  if (in_block) {
    in_block = 0
    print root "/" page ":" line ": the block is not closed" > "/dev/stderr"
    exit 1
  }
  if (blocks != "") {
    write(program, "#include \"prelude.hpp\"\n#include <string>\n" page_includes blocks \
                   "int main(int, char** argv) {\n  const int line = std::stoi(argv[1]);\n" calls "  return 1;\n}\n")
  }
  printf "%s", tests > (out "/blocks.cmake")
  page_includes = blocks = calls = tests = ""
}

function write(name, text) {
  printf "%s", text > (out "/" name ".cpp")
  close(out "/" name ".cpp")
  print "doc_program(" name ")" > (out "/blocks.cmake")
}
