from support.sharing import fresh_dynamo as fresh_dynamo
