"""What a Phi is: configurations, layers, checkpoints. Needs torch and safetensors, nothing else."""
