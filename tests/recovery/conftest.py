from tests.threads import one_thread

__all__ = ["one_thread"]  # for every test of this folder
