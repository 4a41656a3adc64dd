"""Which cmdlets, parameters, classes, methods, properties, values and .NET types the scripts use.

`catalog` holds what is known of them, `walker` and `commands` follow a script's text and find its
uses, `reading` finds what Python reads of the answers, `scripts` puts the project's own together.
"""
