"""The `hf-finemix` command: finds the subcommand, and turns errors into one line and an exit status."""

import _thread
import difflib
import importlib
import os
import signal
import sys
import threading

from .. import __version__
from ..errors import FineMixingError

COMMANDS = {
    "clean": "remove a backdoor from a fine-tuned model: measure, purify, mix, fine-tune, measure, write, publish",
    "plan": "what mix would do and need, from headers alone: nothing is read or written",
    "mix": "weights only, from disk to disk: any model size in little memory",
    "verify": "does a mix follow from its config, suspect and base? element by element",
    "push": "publish a cleaned folder on the Hub, or as a pull request on the suspect's own repo",
    "card": "write the model card of a cleaned folder again, from its report",
    "evaluate": "accuracy of a model, and attack success for each trigger given",
    "poison": "make a backdoored test model, to test a defense with",
    "bench": "attacks × defenses × seeds by a recipe: one table, one figure",
    "demo": "all of it in a few minutes, offline: a small model is backdoored and cleaned",
    "env": "versions and hardware, to paste into a report of a problem",
}

HELP = f"""usage: hf-finemix COMMAND ...

Remove backdoors from fine-tuned Hugging Face models (Fine-mixing and E-PUR, arXiv:2210.09545).

commands:
{chr(10).join(f"  {name:<10} {text}" for name, text in COMMANDS.items())}

`hf-finemix COMMAND --help` lists what a command takes; `--version` prints the version.
"""


def main(argv: list[str] | None = None) -> int:
    """
    Run the command line.

    Returns:
        `int`: 0; 2 after an error of the user's, told in one line on standard error; 130 after Ctrl-C.
    """
    _prepare_streams()
    try:
        code = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader has gone, which is its right
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - or Python complains once more at its end
        return 0
    except OSError as error:  # a full disk behind standard output
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        return _fail(f"standard output cannot be written: {error.strerror}.")


def _prepare_streams() -> None:
    """Signs that the terminal cannot show are no errors, and being told to end is like Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        sys.unraisablehook = _interrupt_again


def _interrupt_again(unraisable) -> None:
    """What interrupts Python while it tidies up an object is lost there: let it come once more, a moment later."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        again = threading.Timer(0.1, _thread.interrupt_main, (signal.SIGTERM,))
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(unraisable)


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if arguments[0] == "--version":
        print(__version__)
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        meant = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(COMMANDS)}."
        return _fail(f"there is no command {name!r}: {meant}")
    try:
        return importlib.import_module(f"{__name__}.{name}").main(rest)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt as interrupt:
        print(f"hf-finemix: interrupted, {str(interrupt) or 'nothing was written'}.", file=sys.stderr)
        return 130
    except FineMixingError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}." if error.filename else str(error))
    except ImportError as error:  # a library that only some options need, by its own words
        return _fail(f"a library is missing: {error}")
    except Exception as error:
        if os.environ.get("HF_FINEMIX_TRACEBACK"):
            raise
        reason = " ".join(str(error).split())[:300]
        return _fail(
            f"unexpected {type(error).__name__}: {reason} (HF_FINEMIX_TRACEBACK=1 shows where; please report)."
        )


def _fail(message: str) -> int:
    print(f"hf-finemix: error: {' '.join(message.split())}", file=sys.stderr)
    return 2
