"""`metal-marlin completion SHELL`: what a shell completes after `metal-marlin`.

Written from the same parsers that read the words, so that no list can be behind.
"""

from marlin.commands.parser import typed
from marlin.commands.table import facts
from marlin.option_values import one_of

_BASH = """# metal-marlin completion bash >~/.local/share/bash-completion/completions/metal-marlin
_metal_marlin() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD - 1]}}" words=
    if [ "$COMP_CWORD" = 1 ]; then
        COMPREPLY=($(compgen -W "{commands}" -- "$word"))
        return
    fi
    case "${{COMP_WORDS[1]}} $before" in
{values}
        *) case "${{COMP_WORDS[1]}}" in
{options}
        esac ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    [ "${{word#-}}" != "$word" ] || COMPREPLY+=($(compgen -f -- "$word"))
}}
complete -o filenames -F _metal_marlin metal-marlin
"""
_ZSH = """#compdef metal-marlin
# metal-marlin completion zsh >"${{fpath[1]}}/_metal-marlin"
_metal_marlin() {{
    local -a commands=(
{commands}
    )
    if (( CURRENT == 2 )); then
        _describe command commands
        return
    fi
    case "$words[2]" in
{options}
    esac
}}
_metal_marlin "$@"
"""


def add_arguments(parser):
    """Declare the command's arguments on a Parser."""
    parser.add_argument(
        "shell", type=typed(one_of(tuple(_SHELLS))), metavar="|".join(_SHELLS), help="for which"
    )


def run(arguments):
    """Print the shell's script. Returns the exit code."""
    print(_SHELLS[arguments.shell](facts()), end="")
    return 0


def bash(commands):
    """The script for bash."""
    values = [
        f'        "{command.name} {flag}") words="{" ".join(option.values)}" ;;'
        for command in commands
        for option in command.options
        if option.values
        for flag in option.flags
    ]
    options = [
        f'            {command.name}) words="{" ".join(command.flags)}" ;;' for command in commands
    ]
    return _BASH.format(
        commands=" ".join(command.name for command in commands),
        values="\n".join(values),
        options="\n".join(options),
    )


def zsh(commands):
    """The script for zsh."""
    names = [f"        {_quoted(f'{command.name}:{command.summary}')}" for command in commands]
    options = []
    for command in commands:
        words = [_zsh_option(option, flag) for option in command.options for flag in option.flags]
        options += [f"        {command.name}) _arguments {' '.join(words)} '*:file:_files' ;;"]
    return _ZSH.format(commands="\n".join(names), options="\n".join(options))


def _zsh_option(option, flag):
    text = option.help.replace("[", "(").replace("]", ")").replace(":", "\\:")
    values = f":value:({' '.join(option.values)})" if option.values else ":value:_files"
    return _quoted(f"*{flag}[{text}]{values if option.takes_value else ''}")


def fish(commands):
    """The script for fish."""
    lines = ["# metal-marlin completion fish >~/.config/fish/completions/metal-marlin.fish"]
    for command in commands:
        first = "complete -c metal-marlin -n __fish_use_subcommand -f"
        lines.append(f"{first} -a {command.name} -d {_quoted(command.summary)}")
        inside = f"complete -c metal-marlin -n '__fish_seen_subcommand_from {command.name}'"
        for option in command.options:
            names = " ".join(_fish_flag(flag) for flag in option.flags)
            value = " -r" if option.takes_value else ""
            value += f" -f -a {_quoted(' '.join(option.values))}" if option.values else ""
            lines.append(f"{inside} {names} -d {_quoted(option.help)}{value}")
    return "\n".join(lines) + "\n"


def _fish_flag(flag):
    return f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"


def _quoted(text):
    return "'" + text.replace("'", "’") + "'"


_SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}
