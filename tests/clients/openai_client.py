"""The openai package for Python talks to an OpenAI-compatible address, as its users do.

Usage: openai_client.py http://HOST:PORT
Prints one line of JSON. Exit code 1 and a line on stderr when anything is not as it should be.
"""

import json
import sys

import openai

QUESTION = [{"role": "user", "content": "Count."}]


def expect(condition, what):
    if not condition:
        sys.exit(f"openai_client.py: {what}")


def text_of(chunks):
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def check_usage(usage, where):
    expect(usage is not None, f"{where}: no usage")
    expect(usage.completion_tokens > 0, f"{where}: no completion tokens")
    total = usage.prompt_tokens + usage.completion_tokens
    expect(usage.total_tokens == total, f"{where}: total_tokens is not the sum")
    return usage.total_tokens


def unknown_path(root):
    """A path that is not forwarded: our own 404 must become the package's own exception."""
    stranger = openai.OpenAI(base_url=f"{root}/not-an-api", api_key="sk-test", max_retries=0)
    try:
        stranger.models.list()
    except openai.NotFoundError as error:
        expect(error.request_id, "the 404 carries no x-request-id")
        expect(isinstance(error.body, dict), "the 404 has no error object")
        expect(error.body.get("message"), "the 404 has no message")
        expect(error.code, "the 404 has no code")
        return {"status": error.status_code, "code": error.code, "request_id": error.request_id}
    sys.exit("openai_client.py: an unknown path was answered")


def main(root):
    # No retries: they would hide a fault.
    client = openai.OpenAI(
        base_url=f"{root}/v1", api_key="sk-test", max_retries=0, timeout=30
    )
    models = [model.id for model in client.models.list()]
    expect(models, "no models")
    model = models[0]

    ours = "py-client-1"
    whole = client.chat.completions.create(
        model=model, messages=QUESTION, extra_headers={"x-request-id": ours}
    )
    expect(whole.choices[0].message.content, "unstreamed: no content")
    expect(whole._request_id == ours, f"unstreamed: request id is {whole._request_id}")

    chunks = list(client.chat.completions.create(model=model, messages=QUESTION, stream=True))
    expect(len(chunks) > 2, f"streamed: {len(chunks)} chunks")
    expect(text_of(chunks), "streamed: no content")
    expect(
        any(c.choices and c.choices[0].finish_reason for c in chunks), "streamed: never finished"
    )

    counted = list(
        client.chat.completions.create(
            model=model,
            messages=QUESTION,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    expect(text_of(counted), "streamed with usage: no content")

    vectors = client.embeddings.create(model=model, input="Count.", encoding_format="float")
    expect(vectors.data[0].embedding, "embeddings: no vector")

    print(
        json.dumps(
            {
                "client": f"openai-python {openai.__version__}",
                "models": models,
                "unstreamed_tokens": check_usage(whole.usage, "unstreamed"),
                "streamed_chunks": len(chunks),
                "streamed_tokens": check_usage(counted[-1].usage, "streamed"),
                "embedding_length": len(vectors.data[0].embedding),
                "refused": unknown_path(root),
            }
        )
    )


if __name__ == "__main__":
    expect(len(sys.argv) == 2, "usage: openai_client.py http://HOST:PORT")
    main(sys.argv[1].rstrip("/"))
