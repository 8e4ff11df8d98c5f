"""Completion of the command line for bash, zsh and fish, from the options themselves. Prints nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shared.errors import InvalidRequest


@dataclass(frozen=True)
class Flag:
    """One option: its values where they can be listed; `file` where a path is expected; neither: any word."""

    name: str  # with its dashes
    about: str
    values: Sequence[str] = ()
    file: bool = False
    switch: bool = False  # takes no value


Commands = Mapping[str, Sequence[Flag]]  # "" is the program without a command


def script(shell: str, program: str, commands: Commands) -> str:
    """What the shell has to read once. Raises InvalidRequest for another shell."""
    writers = {"bash": _bash, "zsh": _zsh, "fish": _fish}
    if shell not in writers:
        raise InvalidRequest(
            f"no completion for {shell!r}",
            f"allowed: {', '.join(writers)}",
            f"try: source <({program} completion bash)",
        )
    return writers[shell](program, commands)


def _bash(program: str, commands: Commands) -> str:
    name = program.replace("-", "_")
    names = " ".join(filter(None, commands))
    cases = "\n".join(_bash_case(command, flags) for command, flags in commands.items())
    return f"""_{name}() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" command="" flags=""
  case "${{COMP_WORDS[1]}}" in {"|".join(filter(None, commands))}) command="${{COMP_WORDS[1]}}" ;; esac
{cases}
  if [[ $COMP_CWORD -eq 1 && $word != -* ]]; then flags="{names}"; fi
  COMPREPLY=($(compgen -W "$flags" -- "$word"))
}}
complete -F _{name} {program}
"""


def _bash_case(command: str, flags: Sequence[Flag]) -> str:
    lines = [f'  if [[ $command == "{command}" ]]; then', '    case "$before" in']
    for flag in flags:
        if flag.values:
            answer = f'COMPREPLY=($(compgen -W "{" ".join(flag.values)}" -- "$word"))'
        elif flag.file:
            answer = 'COMPREPLY=($(compgen -f -- "$word"))'
        elif not flag.switch:
            answer = "COMPREPLY=()"
        else:
            continue
        lines.append(f"      {flag.name}) {answer}; return ;;")
    return "\n".join([*lines, "    esac", f'    flags="{" ".join(flag.name for flag in flags)}"', "  fi"])


def _zsh(program: str, commands: Commands) -> str:
    name = program.replace("-", "_")
    cases = "\n".join(
        f"    {command or '*'}) _arguments {' '.join(_zsh_flag(flag) for flag in flags)} ;;"
        for command, flags in sorted(commands.items(), reverse=True)
    )
    names = " ".join(filter(None, commands))
    return f"""#compdef {program}
_{name}() {{
  if (( CURRENT == 2 )) && [[ $words[2] != -* ]]; then compadd {names}; fi
  case $words[2] in
{cases}
  esac
}}
compdef _{name} {program}
"""


def _zsh_flag(flag: Flag) -> str:
    about = flag.about.replace("'", "").replace("[", "(").replace("]", ")").replace(":", ",")
    action = f"({' '.join(flag.values)})" if flag.values else "_files" if flag.file else " "
    return f"'{flag.name}[{about}]{'' if flag.switch else f':value:{action}'}'"


def _fish(program: str, commands: Commands) -> str:
    names = " ".join(filter(None, commands))
    lines = [f"complete -c {program} -f", f"complete -c {program} -n __fish_use_subcommand -a '{names}'"]
    for command, flags in commands.items():
        seen = (
            f"__fish_seen_subcommand_from {command}"
            if command
            else f"not __fish_seen_subcommand_from {names}"
        )
        for flag in flags:
            about = flag.about.replace("'", "")
            value = f" -x -a '{' '.join(flag.values)}'" if flag.values else " -r -F" if flag.file else " -x"
            value = "" if flag.switch else value
            lines.append(f"complete -c {program} -n '{seen}' -l {flag.name[2:]}{value} -d '{about}'")
    return "\n".join(lines) + "\n"
