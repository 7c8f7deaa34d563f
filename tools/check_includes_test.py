#!/usr/bin/env python3
"""Each rule of check_includes.py catches what breaks it, and lets pass what does not."""

import pathlib
import tempfile
import unittest
from unittest import mock

import check_includes

# A small tree that keeps every rule.
GOOD_TREE = {
    "kernels/base/dtype.h": "#pragma once\n#include <cstdint>\n#include \"absl/status/status.h\"\n",
    "kernels/base/README.md": "",
    "kernels/ops/linear.h": '#pragma once\n#include "kernels/base/dtype.h"\n',
    "kernels/ops/README.md": "",
    "kernels/cpu/linear.cc": '#include "kernels/ops/linear.h"\n#ifdef __AVX512F__\n#endif\n',
    "kernels/cpu/linear_test.cc": '#include "gtest/gtest.h"\n#include "kernels/ops/linear.h"\n',
    "kernels/cpu/cpu_backend.h": "#pragma once\n",
    "kernels/cpu/README.md": "",
    "services/engine/engine.h": '#pragma once\n#include "kernels/ops/linear.h"\n',
    "services/engine/engine_test.cc": '#include "kernels/cpu/cpu_backend.h"\n',
    "services/engine/README.md": "",
    "tools/sluice/main.cc": '#include "kernels/cpu/cpu_backend.h"\n#include <CLI/CLI.hpp>\n',
    "tools/sluice/README.md": "",
}

# name, file, its text (None: taken away), what the message must hold.
OFFENCES = [
    ("engine includes a backend", "services/engine/engine.cc",
     '#include "kernels/cpu/cpu_backend.h"\n',
     'services/engine/engine.cc:1: services/engine may not include "kernels/cpu/cpu_backend.h"'),
    ("ops include a service", "kernels/ops/linear.h",
     '#pragma once\n\n#include "services/engine/engine.h"\n', "kernels/ops/linear.h:3: kernels/ops may not"),
    ("a service includes a tool", "services/engine/engine.cc",
     '#include "tools/sluice/main.cc"\n', "services/engine may not include"),
    ("a unit test includes a tool", "services/engine/engine_test.cc",
     '#include "tools/sluice/main.cc"\n', "services/engine may not include"),
    ("spaces in the directive", "kernels/base/dtype.h",
     '#pragma once\n#  include  "kernels/ops/linear.h"\n', "kernels/base may not include"),
    ("a file that is not there", "kernels/ops/linear.h",
     '#pragma once\n#include "kernels/base/gone.h"\n', '"kernels/base/gone.h" does not exist'),
    ("a path from the file's own folder", "kernels/cpu/linear.cc",
     '#include "cpu_backend.h"\n', '"cpu_backend.h" is neither'),
    ("a library nobody chose", "kernels/cpu/linear.cc",
     '#include "folly/any.h"\n', '"folly/any.h" is neither'),
    ("a file of the tree in angle brackets", "kernels/cpu/linear.cc",
     "#include <kernels/base/dtype.h>\n", "include it in quotes"),
    ("a folder outside the table", "services/new/new.h",
     '#pragma once\n#include "kernels/base/dtype.h"\n', "is not in the table"),
    ("no #pragma once", "kernels/base/dtype.h", "#include <cstdint>\n", "has no `#pragma once`"),
    ("a caller asks for CUDA", "services/engine/engine.cc",
     "#ifdef SLUICE_CUDA\n#endif\n", "services/engine/engine.cc:1: asks for a backend"),
    ("a caller asks for AVX", "tools/sluice/main.cc",
     "#if defined(__AVX2__)\n#endif\n", "tools/sluice/main.cc:1: asks for a backend"),
    ("no README", "kernels/ops/README.md", None, "kernels/ops: has code and no README.md"),
]


class CheckIncludesTest(unittest.TestCase):
    def offences_of(self, tree):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            for path, text in tree.items():
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_text(text)
            return check_includes.check_tree(root)

    def test_good_tree_passes(self):
        self.assertEqual(self.offences_of(GOOD_TREE), [])

    def test_each_offence_is_caught_alone(self):
        for name, path, text, message in OFFENCES:
            with self.subTest(name):
                tree = dict(GOOD_TREE)
                tree.pop(path, None)
                if text is not None:
                    tree[path] = text
                    tree[f"{pathlib.Path(path).parent.as_posix()}/README.md"] = ""
                offences = self.offences_of(tree)
                self.assertEqual(len(offences), 1, offences)
                self.assertIn(message, offences[0])

    def test_table_without_cycle(self):
        self.assertIsNone(check_includes.find_cycle())
        for folder, wrong in [("kernels/base", "services/engine"), ("services/base", "tools")]:
            with self.subTest(f"{folder} -> {wrong}"):
                with mock.patch.dict(check_includes.ALLOWED, {folder: [wrong]}):
                    self.assertIsNotNone(check_includes.find_cycle())


if __name__ == "__main__":
    unittest.main()
