"""What stands between the network and the page: guard, login, health, metrics. Knows ASGI and runners, neither gradio nor torch."""
