"""Writes docs/reading.md, the files that a client's or a model file's bytes can reach, in order:

    python3 tests/support/reading_list.py

Owns which files those are, and why the others are not. A test holds the page to the sources.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reading.md"
MAX_LINES = 12_000

HEAD = """# A day's reading

What someone has to read who wants to know what a hostile client or a hostile model file can do. A
file is listed if it handles bytes of either before they have become checked values: token ids
within the vocabulary, numbers within their range, tensors within their buffers. What lies behind
(the engine's steps, the kernels, the metrics) sees those values alone, and the last part is what
checks them where Python ends.

`tests/support/reading_list.py` writes this page; a test fails when a source is in neither of its
lists, when a count here is more than a tenth off, and when the first five parts pass {limit:,} or
a later one its own limit. Lines are all lines, code, comments and blanks, in round numbers.

The first five parts are what any request or model file comes through, and a day's reading. A later
one is for who offers what it is about: only a request or a file that asks for it gets there.
"""

# (heading, what to look for, patterns in reading order); a file belongs to the first that fits.
PARTS = (
    (
        "From the socket to a request",
        "Deadlines, one grammar for a head, and what a process may never do.",
        (
            "marlin/server/http/limits.py",
            "marlin/server/http/connection.py",
            "marlin/server/http/message.py",
            "marlin/server/http/handler.py",
            "marlin/server/http/*.py",
            "marlin/server/process/lockdown.py",
        ),
    ),
    (
        "From a body to a generation, and back",
        "One strict JSON, one reader of typed fields, refusals by name, and log lines.",
        (
            "marlin/files/strict_json.py",
            "marlin/files/fields.py",
            "marlin/server/api/app.py",
            "marlin/server/api/*.py",
            "marlin/engine/sampling.py",
            "marlin/engine/served_model.py",
            "marlin/engine/bounds.py",
            "marlin/server/observe/accept.py",
            "marlin/server/observe/logs.py",
        ),
    ),
    (
        "From messages to token ids, and back",
        "The template interpreter and its budget; tokenizers of a file's own tables.",
        (
            "marlin/text/chat_template.py",
            "marlin/text/template/limits.py",
            "marlin/text/template/lexer.py",
            "marlin/text/template/expressions.py",
            "marlin/text/template/statements.py",
            "marlin/text/template/*.py",
            "marlin/text/*.py",
        ),
    ),
    (
        "From a model file to a plan of its tensors",
        "Offsets and sizes, configs key by key, every tensor at the shape its family says.",
        (
            "marlin/files/*.py",
            "marlin/weights/tensor_file.py",
            "marlin/weights/gguf.py",
            "marlin/weights/safetensors_file.py",
            "marlin/models/config*.py",
            "marlin/models/registry.py",
            "marlin/models/plan.py",
            "marlin/models/plan_*.py",
            "marlin/models/*.py",
        ),
    ),
    (
        "Where Python ends",
        "Every record of a program is checked against its buffers, whatever Python did.",
        (
            "metal_shim/marlin.h",
            "marlin/device/buffer.py",
            "metal_shim/common/buffers.[hc]",
            "metal_shim/common/kernels.h",
            "metal_shim/common/records.c",
            "metal_shim/common/*.[hc]",
        ),
    ),
)

# Parts with a limit of lines each, which take their files before the others do.
AGENTS = (
    "What agents ask for",
    "Other APIs, tools and the calls in an answer; schemas and expressions as automata of bounded "
    "size.",
    (
        "marlin/server/api/messages.py",
        "marlin/server/api/responses.py",
        "marlin/server/api/openai_tools.py",
        "marlin/server/api/output_format.py",
        "marlin/text/message_shapes.py",
        "marlin/text/answer.py",
        "marlin/text/tool_calls/scanner.py",
        "marlin/text/grammar/constraint.py",
        "marlin/text/grammar/automaton.py",
        "marlin/text/grammar/keywords.py",
        "marlin/text/grammar/schema.py",
        "marlin/text/grammar/json_rules.py",
        "marlin/text/grammar/*.py",
        "metal_shim/common/automaton.c",
        "metal_shim/common/grammar.[hc]",
        "metal_shim/common/vocabulary.c",
    ),
    5_000,
)
SENT_ALONG = (
    "What agents send along",
    "The names within items and blocks: those that mean something here, those that others' servers "
    "put there, and that whoever sends another is told.",
    ("marlin/server/api/item_names.py",),
    200,
)
EDITORS = (
    "What editors and measurements ask for",
    "Token ids of a text, a text of token ids, gaps to be filled, and a prompt's scores.",
    (
        "marlin/server/api/tokenizing.py",
        "marlin/server/api/infill.py",
        "marlin/engine/gaps.py",
        "marlin/text/gaps.py",
        "marlin/server/api/openai_echo.py",
        "marlin/server/api/ollama.py",
    ),
    1_000,
)
FORMATS = (
    "Foreign formats",
    "Folders that other programs quantized: each matrix's tensors, at the shapes its config says; "
    "and one file in parts.",
    (
        "marlin/files/split_name.py",
        "marlin/weights/gguf_parts.py",
        "marlin/weights/gguf_writers.py",
        "marlin/weights/foreign/table.py",
        "marlin/weights/foreign/numbers.py",
        "marlin/weights/foreign/matrix.py",
        "marlin/weights/foreign/*.py",
    ),
    2_000,
)
SEARCHES = (
    "What searches ask for",
    "Texts to make vectors of, documents to rank, and files that say how.",
    (
        "marlin/server/api/embeddings.py",
        "marlin/server/api/rerank.py",
        "marlin/server/api/vectors.py",
        "marlin/text/rank_prompt.py",
        "marlin/models/pooling.py",
        "marlin/models/bert.py",
        "marlin/text/gguf_word_pieces.py",
    ),
    1_000,
)
FAMILIES = (
    "Families beyond the first",
    "What each reads of a config in words of its own, on the readers above.",
    tuple(
        f"marlin/models/{name}.py"
        for name in (
            *("smollm3", "granite", "olmo2", "phi3", "gemma2", "ministral3", "exaone4", "glm4"),
            *("muse_glimmer", "wrappers", "lfm2", "qwen3_next", "qwen3_5", "config_delta"),
            *("config_gemma4", "gemma4", "plan_tables", "lfm2_moe"),
            *("layers_experts", "plan_experts", "plan_mlx", "config_experts"),
            *("qwen3_moe", "mixtral", "glm4_moe", "gpt_oss", "qwen2_moe"),
        )
    )
    + (
        "marlin/weights/row_table.py",
        "marlin/text/gguf_merges.py",
        "marlin/device/ops_experts.py",
        "marlin/device/ops_state.py",
        "metal_shim/common/checks_experts.h",
        "metal_shim/common/checks_fused.h",
        "metal_shim/common/checks_state.h",
        "metal_shim/cpu/experts.h",
        "metal_shim/cpu/kernels_experts.c",
        "metal_shim/cpu/kernels_state.c",
        "shaders/experts.h",
        "shaders/experts.metal",
        "shaders/state.metal",
        "shaders/matvec_experts.h",
    ),
    5_500,
)
LATENTS = (
    "Latent attention",
    "DeepSeek's line: its config, matrices of heads cut out of larger ones, its kernel's checks.",
    (
        "marlin/models/config_latent.py",
        "marlin/models/deepseek_v3.py",
        "marlin/models/head_rows.py",
        "marlin/models/plan_heads.py",
        "marlin/device/ops_latent.py",
        "metal_shim/common/checks_latent.h",
    ),
    700,
)
LOCKED_PLACES = (
    "What locked-down places ask for",
    "A model's bytes compared with what was written down, requests recorded, and keys told apart.",
    (
        "marlin/files/manifest.py",
        "marlin/files/signature.py",
        "marlin/files/sealed.py",
        "marlin/server/observe/audit.py",
        "marlin/server/api/keys.py",
        "marlin/server/process/requirements.py",
        "marlin/server/process/seccomp.py",
        "marlin/server/http/unix_socket.py",
        "marlin/server/http/doors.py",
    ),
    2_000,
)
FOREIGN_WORDS = (
    "What pages of browsers and words of users could do",
    "Which pages may ask, and which special tokens of a prompt its template wrote.",
    ("marlin/server/api/browsers.py", "marlin/server/api/page.py", "marlin/text/origin.py"),
    500,
)
APART = (AGENTS, SENT_ALONG, EDITORS, FORMATS, SEARCHES, FAMILIES, LATENTS, LOCKED_PLACES)
APART += (FOREIGN_WORDS,)

# What sees checked values only: these files, and of what PARTS leaves, those folders.
FILES_BEHIND = {
    "marlin/__init__.py": "the version, and the names of the library",
    "marlin/library.py": "its program's words, of which the API's own parsers read requests",
    "marlin/aio.py": "pieces of answers",
    "marlin/__main__.py": "the operator's own words",
    "marlin/cli.py": "the operator's own words",
    "marlin/config.py": "the operator's own words",
    "marlin/option_values.py": "the operator's own words",
    "marlin/errors.py": "declares what an error is called and which status it has",
    "marlin/streams.py": "descriptors of the process",
    "marlin/turns.py": "clients by name, and counts",
    "marlin/server/api/*_answers.py": "results and counts, which `encoding.py` makes JSON of",
    "marlin/server/api/quotas.py": "numbers, and names of keys that were found",
    "marlin/server/api/dialect.py": "declares what a dialect is",
    "marlin/server/api/event_stream.py": "events that a dialect has made",
    "marlin/server/http/allocator.py": "the allocator's settings",
    "marlin/server/http/budget.py": "lengths that were compared with their limit",
    "marlin/server/http/places.py": "who is connected, not what is sent",
    "marlin/server/http/seldom.py": "how often something was said",
    "marlin/server/observe/log_writer.py": "lines as they are written",
    "marlin/server/process/serve.py": "puts the others together",
    "marlin/engine/load.py": "puts the others together",
    "marlin/server/process/room.py": "the system's limits",
    "marlin/server/process/service_manager.py": "systemd's words",
    "marlin/server/process/signals.py": "signals",
    "marlin/server/process/supervisor.py": "processes, on the operator's words",
    "marlin/server/process/watchdog.py": "seconds alone",
    "marlin/server/process/worker.py": "its supervisor's words",
    "marlin/files/snapshot.py": "lengths and times of files",
    "marlin/models/place.py": "the operator's own words",
    "marlin/models/checkpoint*.py": "a plan of tensors, which has been checked",
    "marlin/models/config_json.py": "`quantize`",
    "marlin/models/layers*.py": "what a spec says, recorded",
    "marlin/models/model.py": "what a spec says, recorded",
    "marlin/models/spec.py": "declares what a family says, of sizes that were bounded",
    "marlin/models/rope.py": "numbers that the readers of configs have bounded",
    "marlin/models/slab_plan.py": "sizes of matrices, which were bounded",
    "marlin/models/source.py": "`quantize`",
    "marlin/text/detokenizer.py": "token ids within the vocabulary",
    "marlin/weights/block_types.py": "declares the types that files store",
    "marlin/weights/kinds.py": "declares kinds of weights",
    "marlin/weights/ggml_types.py": "`quantize`",
    "metal_shim/common/kernel_units.c": "records that were found sound",
}
FOLDERS_BEHIND = {
    "marlin/commands/*.py": "what an operator runs by hand, on the readers above",
    "marlin/device/*.py": "programs and places in files, which native code checks",
    "marlin/engine/*.py": "token ids within the vocabulary, numbers within their range",
    "marlin/server/observe/*.py": "counts, and names from lists",
    "marlin/text/tool_calls/*.py": "a model's own words, which `scanner.py` reads for them",
    "marlin/weights/*.py": "`quantize`",
    "metal_shim/build/*.py": "the build",
    "metal_shim/cpu/*": "records that were found sound",
    "metal_shim/metal/*": "records that were found sound",
    "shaders/*": "records that were found sound",
}
SOURCES = ("marlin/**/*.py", "metal_shim/**/*.py", "metal_shim/**/*.[hcm]", "shaders/*")


def sources():
    """Paths of the product's sources relative to ROOT, but for empty files."""
    found = {path for pattern in SOURCES for path in ROOT.glob(pattern)}
    return sorted(path.relative_to(ROOT) for path in found if path.stat().st_size)


def parts():
    """([(heading, text, paths in reading order)], paths that no list has)."""
    left, listed = sources(), []

    def take(pattern):
        found = [path for path in left if path.match(pattern)]
        left[:] = [path for path in left if path not in found]
        return found

    for pattern in FILES_BEHIND:
        take(pattern)
    for heading, text, patterns, *_ in (*APART, *PARTS):
        listed.append((heading, text, [path for pattern in patterns for path in take(pattern)]))
    listed = listed[len(APART) :] + listed[: len(APART)]
    for pattern in FOLDERS_BEHIND:
        take(pattern)
    return listed, left


def num_lines(path):
    return len((ROOT / path).read_text().splitlines())


def totals():
    """(lines of what any request or model file comes through, lines of each part apart)."""
    sizes = [sum(map(num_lines, paths)) for _, _, paths in parts()[0]]
    return sum(sizes[: len(PARTS)]), *sizes[len(PARTS) :]


def rounded(count, unit):
    """To a whole unit, so that the page changes when a file does, and not with every edit."""
    return max(unit, (count + unit // 2) // unit * unit)


def page():
    """The text of docs/reading.md."""
    listed, _ = parts()
    every, *apart = (rounded(total, 100) for total in totals())
    more = ", ".join(
        f"{size:,} for {heading[0].lower()}{heading[1:]}"
        for size, (heading, *_) in zip(apart, APART, strict=True)
    )
    lines = [HEAD.format(limit=MAX_LINES), f"**{every:,} lines, and {more}.**"]
    for number, (heading, text, paths) in enumerate(listed, 1):
        size = sum(map(num_lines, paths))
        lines += ["", f"## {number}. {heading}: {rounded(size, 100):,} lines", "", text, ""]
        lines += ["| file | lines |", "|---|---|"]
        lines += [f"| `{path}` | {rounded(num_lines(path), 10)} |" for path in paths]
    lines += ["", "## What is not on the list", "", "| the rest of | sees |", "|---|---|"]
    behind = FILES_BEHIND | FOLDERS_BEHIND
    lines += [f"| `{pattern}` | {reason} |" for pattern, reason in behind.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(page().partition("**")[2].partition("**")[0])
