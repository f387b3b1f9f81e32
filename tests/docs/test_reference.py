"""docs/configuration.md is what the example makes it."""

import unittest

import reference


class Reference(unittest.TestCase):
    def test_the_page_is_current(self):
        """Catches: a key that was added, or changed, and whose page was not made anew."""
        with open(reference.PAGE, encoding="utf-8") as page:
            self.assertEqual(page.read(), reference.made(),
                             "run: python3 tests/docs/reference.py --write")

    def test_keys_comments_and_values_are_read(self):
        """Catches: a comment at the wrong key, a list without its brackets, a lost value."""
        text = """\
# Of the file.

server:
  listen: ":8000"                # an address
  # What is bounded,
  # and how.
  limit: auto
#~   cors:                        # off
#~     enabled: true
#~     origins: ["a # b"]         # one,
#~                                # or two

backends:
  - url: "http://a"
    weight: 1                    # 1 | 2
#~   - url: "http://b"
#~     tls:
#~       ca_file: /x
"""
        self.assertEqual(reference.rows(text), [
            ("server", "", ""),
            ("server.listen", '":8000"', "an address"),
            ("server.limit", "auto", "What is bounded, and how."),
            ("server.cors", "", "off"),
            ("server.cors.enabled", "true", ""),
            ("server.cors.origins", '["a # b"]', "one, or two"),
            ("backends", "", ""),
            ("backends[].url", '"http://a"', ""),
            ("backends[].weight", "1", "1 | 2"),
            ("backends[].tls", "", ""),
            ("backends[].tls.ca_file", "/x", ""),
        ])
