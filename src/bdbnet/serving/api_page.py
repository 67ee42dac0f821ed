"""The page of the JSON API, from its OpenAPI description; it is readable without scripts."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="stylesheet" href="/static/style.css">
<script src="/static/theme.js"></script>
<link rel="icon" href="/static/icon.svg">
<title>bdbnet: API</title>
</head>
<body class="text">
"""


def api_page(description: Mapping[str, Any], address: str, *, token: bool) -> str:
    """The HTML text of a page with every call, its arguments and an example for curl.

    Args:
        description: what OpenAPI says of the calls.
        address: of the server, as in `http://127.0.0.1:8765`.
        token: whether the server wants one.
    """
    start = f"curl -H 'Authorization: Bearer TOKEN' {address}" if token else f"curl {address}"
    parts = [
        _HEAD,
        f"<h1>{escape(description['info']['title'])}: API</h1>\n<p>{escape(description['info']['summary'])} Where the server has "
        "a token, send it with each call: <code>Authorization: Bearer TOKEN</code>. "
        f"{escape(description['info']['description'])} "
        'Described for programs in <a href="/openapi.json">/openapi.json</a>. <a href="/">Back to the gallery</a></p>\n',
    ]
    for path, methods in description["paths"].items():
        for method, call in methods.items():
            arguments = [*_arguments(call, description)]
            parts.append(
                f"<section>\n<h2><code>{method.upper()} {escape(path)}</code></h2>\n<p>{escape(call['summary'])}.</p>\n"
            )
            if arguments:
                rows = "".join(
                    f'<tr><th scope="row"><code>{escape(name)}</code></th><td>{escape(kind)}</td><td>{escape(text)}</td></tr>\n'
                    for name, kind, text in arguments
                )
                parts.append(
                    '<div class="scroll"><table>\n<thead><tr><th scope="col">Argument</th><th scope="col">Kind</th>'
                    f'<th scope="col">Meaning</th></tr></thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n'
                )
            parts.append(f"<pre>{escape(_example(method, path, start))}</pre>\n</section>\n")
    return "".join([*parts, "</body>\n</html>\n"])


def _arguments(call: Mapping[str, Any], description: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Name, kind and meaning of each argument."""
    for parameter in call.get("parameters", ()):
        yield parameter["name"], _kind(parameter["schema"]), parameter.get("description", "")
    for content in call.get("requestBody", {}).get("content", {}).values():
        schema = content["schema"]
        for reference in [schema, *schema.get("allOf", ()), *schema.get("anyOf", ())]:
            if "$ref" in reference:
                schema = description["components"]["schemas"][reference["$ref"].rpartition("/")[2]]
        for name, field in schema.get("properties", {}).items():
            yield name, _kind(field), field.get("description", "")


def _kind(schema: Mapping[str, Any]) -> str:
    choices = [each for each in schema.get("anyOf", [schema]) if each.get("type") != "null"]
    kind = choices[0]
    if kind.get("format") == "binary" or "contentMediaType" in kind:
        text = "file"
    elif "enum" in kind:
        text = " or ".join(map(str, kind["enum"]))
    elif kind.get("type") == "array":
        text = f"{_kind(kind['items'])}, any number of times"
    else:
        text = {"integer": "whole number", "number": "number"}.get(str(kind.get("type")), "text")
    default = schema.get("default")
    return text if default is None else f"{text}; {default} if left out"


def _example(method: str, path: str, start: str) -> str:
    if method == "get":
        return f"{start}{path.replace('{row}', '0')}{' -o 0.jpg' if path.startswith('/image/') else ''}"
    return f"{start}{path} -F image=@query.jpg -F box=10,20,110,220"
