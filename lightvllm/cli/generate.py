"""`lightvllm generate`: prompts in, completions out."""

import argparse
import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

from lightvllm.cli.flags import add_engine_flags, add_sampling_flags
from lightvllm.cli.model import failure, open_llm, sampling_params, stream
from lightvllm.cli.parser import Parser, add_verb

if TYPE_CHECKING:
    from lightvllm.llm import LLM
    from lightvllm.outputs import RequestOutput
    from lightvllm.sampling_params import SamplingParams

DESCRIPTION = """
The completion of a single prompt is printed as it comes, those of several when all are done.

  lightvllm generate --model path/to/checkpoint "Once upon a time" --max-tokens 100
  lightvllm generate --file prompts.txt --json > completions.jsonl
  echo "Once upon a time" | lightvllm generate --temperature 0"""


def add_parser(verbs: "argparse._SubParsersAction[Parser]") -> None:
    """Add the verb to the command line."""
    parser = add_verb(verbs, "generate", run, "complete prompts", DESCRIPTION, arguments="[PROMPT ...]")
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="prompts; by default the lines of standard input")
    parser.add_argument("--file", metavar="FILE", help="take the prompts from this file, one a line")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line for each prompt")
    add_engine_flags(parser, skip={"skip_tokenizer_init"})
    add_sampling_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit code."""
    prompts = _read_prompts(args)
    with open_llm(args) as llm:
        params = sampling_params(llm, args)
        if not args.json:
            _refuse_what_only_json_shows(params)
        if len(prompts) == 1 and params.n == 1 and not args.json:
            outputs = [_print_streaming(llm, prompts[0], params)]
        else:
            outputs = llm.generate(prompts, params, use_tqdm=len(prompts) > 1 and sys.stderr.isatty())
            for output in outputs:
                print(
                    json.dumps(_record(output)) if args.json else _text(output, with_prompt=len(prompts) > 1),
                    flush=True,
                )
    failures = [f"error: prompt {i}: {why}" for i, why in enumerate(map(failure, outputs), start=1) if why]
    for line in failures:
        print(line, file=sys.stderr)
    return 1 if failures else 0


def _read_prompts(args: argparse.Namespace) -> list[str]:
    if args.prompts and args.file:
        raise ValueError("prompts: given both as arguments and with --file, expected one of these")
    if args.prompts:
        return args.prompts
    if args.file:
        try:
            with open(args.file, encoding="utf-8") as file:
                text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--file: cannot read {args.file!r}: {error}") from None
    elif sys.stdin.isatty():
        raise ValueError("prompts: none; give them as arguments, with --file, or through a pipe")
    else:
        text = sys.stdin.read()
    prompts = [line for line in text.split("\n") if line.strip()]
    if not prompts:
        raise ValueError(f"prompts: {args.file or 'standard input'} has no line with text")
    return prompts


def _refuse_what_only_json_shows(params: "SamplingParams") -> None:
    for name in ("logprobs", "prompt_logprobs"):
        if getattr(params, name) is not None:
            raise ValueError(f"{name}: only shown with --json")
    if not params.detokenize:
        raise ValueError("detokenize: without text there is nothing to print but with --json")


def _print_streaming(llm: "LLM", prompt: str, params: "SamplingParams") -> "RequestOutput":
    shown = 0
    for output in stream(llm, prompt, params):
        text = output.outputs[0].text
        print(text[shown:], end="", flush=True)
        shown = len(text)
    print()
    return output


def _text(output: "RequestOutput", with_prompt: bool) -> str:
    """The completions, each on lines of its own, under the prompt they complete."""
    lines = [f"# {output.prompt}"] if with_prompt else []
    return "\n".join(lines + [completion.text for completion in output.outputs])


def _record(output: "RequestOutput") -> dict[str, Any]:
    """The output's fields as JSON has them, and instead of clock times the seconds that passed."""
    record = dataclasses.asdict(output)
    metrics = output.metrics
    assert metrics is not None
    assert metrics.finished_time is not None
    record["metrics"] = {
        "time_to_first_token": metrics.time_to_first_token,
        "time_to_finish": metrics.finished_time - metrics.arrival_time,
    }
    return record
