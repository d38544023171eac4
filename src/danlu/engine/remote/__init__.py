"""Models behind a URL: any service that speaks OpenAI's protocol."""
