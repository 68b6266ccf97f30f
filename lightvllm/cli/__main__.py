"""`python -m lightvllm.cli`, where the `lightvllm` command is not on the path."""

import sys

from lightvllm.cli.main import main

sys.exit(main())
