"""The command line without what it does."""

from emu3_megatron.cli.app import build_command


def parse(arguments):
    """Parse the arguments of `emu3`; returns the command's name and its parameters.

    A usage error is raised as click raises it.
    """
    parsed = []

    def record(command):
        for inner in getattr(command, "commands", {}).values():
            record(inner)
        if not hasattr(command, "commands") or command.invoke_without_command:
            command.callback = lambda **values: parsed.append((command.name, values))

    command = build_command()
    record(command)
    with command.make_context("emu3", list(arguments), obj=_Settings()) as context:
        command.invoke(context)
    return parsed[-1]  # a group that works alone comes before its command


class _Settings:
    debug = False
