"""Alert rules as code: `python -m alerts` writes the rule files of this folder."""
