"""cache-dit's interface over `torch.compile` and `configure`, so that a script moves by changing an
import. `docs/migrating.md` says for each option what is the same, what differs, and why.
"""
