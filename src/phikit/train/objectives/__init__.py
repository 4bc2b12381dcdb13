"""What is minimised: next tokens (pre-training, SFT), preferences (DPO), rewards (GRPO)."""
