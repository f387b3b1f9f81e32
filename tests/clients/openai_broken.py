"""The openai package for Python reads streams whose engine dies: it must raise, and say why.

Usage: openai_broken.py http://HOST:PORT
Prints one line of JSON. Exit code 1 and a line on stderr when anything is not as it should be.
"""

import json
import sys

import openai

# The engine's connection breaks after four events.
DEATH = {"x-mock-tokens": "9", "x-mock-gap-ms": "5", "x-mock-die-after": "4"}


def raised_by(stream):
    try:
        for _ in stream:
            pass
    except openai.APIError as error:
        return {"message": error.message, "code": error.code}
    sys.exit("openai_broken.py: a stream that broke off was taken for a whole one")


def main(root):
    client = openai.OpenAI(
        base_url=f"{root}/v1", api_key="sk-test", max_retries=0, timeout=30
    )
    wishes = {"model": "m", "stream": True, "extra_headers": DEATH}
    chat = client.chat.completions.create(
        messages=[{"role": "user", "content": "Count."}], **wishes
    )
    prompt = client.completions.create(prompt="Count.", **wishes)
    response = client.responses.create(input="Count.", **wishes)
    raised = [raised_by(stream) for stream in (chat, prompt, response)]
    print(json.dumps(raised))


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"))
