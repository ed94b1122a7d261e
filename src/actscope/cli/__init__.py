"""The command ``actscope``: one file per verb. Nothing here imports torch before it must."""
